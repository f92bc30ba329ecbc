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
#include <kith/topology/base_graph.hpp>
#include <kith/topology/complete.hpp>
#include <kith/topology/custom.hpp>
#include <kith/topology/cycle.hpp>
#include <kith/topology/equi_dynamic.hpp>
#include <kith/topology/halving_shift.hpp>
#include <kith/topology/hyper_cuboid.hpp>
#include <kith/topology/hypercube.hpp>
#include <kith/topology/isolated.hpp>
#include <kith/topology/one_peer_exponential.hpp>
#include <kith/topology/one_peer_hypercube.hpp>
#include <kith/topology/random_matching.hpp>
#include <kith/topology/ring.hpp>
#include <kith/topology/shift_one.hpp>
#include <kith/topology/star.hpp>
#include <kith/topology/static_exponential.hpp>
#include <kith/topology/torus.hpp>
#include <kith/types.hpp>
#include <kith/version.hpp>
#include <kith/view.hpp>
