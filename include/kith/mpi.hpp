// SPDX-License-Identifier: Apache-2.0
#pragma once

/// @file
/// Everything for host buffers across processes and machines: the core of Kith and the MPI engine. This header, and
/// what lies under kith/mpi/, are the only ones that see <mpi.h>.

#include <kith/kith.hpp>
#include <kith/mpi/communicator.hpp>
