// SPDX-License-Identifier: Apache-2.0
#pragma once

/// @file
/// Everything that needs a C++20 compiler and nothing else: the averager, the topologies, the engine of threads.

#include <kith/averager.hpp>
#include <kith/communicator.hpp>
#include <kith/error.hpp>
#include <kith/exchange/full_precision.hpp>
#include <kith/numeric/convert.hpp>
#include <kith/thread/run.hpp>
#include <kith/topology.hpp>
#include <kith/topology/analysis.hpp>
#include <kith/topology/any.hpp>
#include <kith/topology/cycle.hpp>
#include <kith/types.hpp>
#include <kith/version.hpp>
#include <kith/view.hpp>
