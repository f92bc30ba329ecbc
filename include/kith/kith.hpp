// SPDX-License-Identifier: Apache-2.0
#pragma once

/// @file
/// Everything that needs a C++20 compiler and nothing else: the averager, the topologies, the exchanges and codecs, the
/// engine of threads.

#include <kith/averager.hpp>
#include <kith/codec.hpp>
#include <kith/codec/cast.hpp>
#include <kith/codec/cyclic_mask.hpp>
#include <kith/codec/int4_block.hpp>
#include <kith/codec/int8_block.hpp>
#include <kith/codec/min_max_uint8.hpp>
#include <kith/codec/qsgd.hpp>
#include <kith/codec/random_k.hpp>
#include <kith/codec/sign_mean.hpp>
#include <kith/codec/top_k.hpp>
#include <kith/communicator.hpp>
#include <kith/error.hpp>
#include <kith/exchange/choco.hpp>
#include <kith/exchange/difference.hpp>
#include <kith/exchange/direct.hpp>
#include <kith/exchange/full_precision.hpp>
#include <kith/exchange/masked_mean.hpp>
#include <kith/exchange/sharded.hpp>
#include <kith/numeric/convert.hpp>
#include <kith/thread/run.hpp>
#include <kith/topology.hpp>
#include <kith/topology/analysis.hpp>
#include <kith/topology/any.hpp>
#include <kith/topology/cycle.hpp>
#include <kith/topology/hierarchical.hpp>
#include <kith/types.hpp>
#include <kith/version.hpp>
#include <kith/view.hpp>
