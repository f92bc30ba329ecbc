// SPDX-License-Identifier: Apache-2.0
// Collectives. All ranks meet: nothing ends before the last has come, which is stricter than NCCL.
#include <algorithm>
#include <cstring>
#include <type_traits>

#include "memory.hpp"
#include "nccl_comm.hpp"

namespace kith::gpu_emulator::detail {
namespace {

using Kind = Part::Kind;

constexpr const char* type_names[] = {"int8",    "uint8",   "int32",   "uint32",   "int64",       "uint64",
                                      "float16", "float32", "float64", "bfloat16", "float8_e4m3", "float8_e5m2"};

double to_wide(float value) { return static_cast<double>(value); }

// What sums are held in: NCCL's own order of additions is its business, so no test can ask for more than this.
template <class T>
using Accumulator =
    std::conditional_t<std::is_same_v<T, double>, double,
                       std::conditional_t<!std::is_integral_v<T>, float,
                                          std::conditional_t<std::is_signed_v<T>, std::int64_t, std::uint64_t>>>;

template <class T>
Accumulator<T> load(const T& value) {
  if constexpr (std::is_same_v<T, __half>) {
    return __half2float(value);
  } else if constexpr (std::is_same_v<T, __nv_bfloat16>) {
    return __bfloat162float(value);
  } else {
    return static_cast<Accumulator<T>>(value);
  }
}

template <class T>
T store(Accumulator<T> value) {
  if constexpr (std::is_same_v<T, __half>) {
    return __float2half_rn(value);
  } else if constexpr (std::is_same_v<T, __nv_bfloat16>) {
    return __float2bfloat16_rn(value);
  } else {
    return static_cast<T>(value);
  }
}

template <class A>
A combine(A a, A b, ncclRedOp_t op) {
  switch (op) {
    case ncclProd:
      return static_cast<A>(a * b);
    case ncclMax:
      return std::max(a, b);
    case ncclMin:
      return std::min(a, b);
    default:
      return static_cast<A>(a + b);
  }
}

double value_at(const void* address, ncclDataType_t type) {
  const void* const where = translate(address);
  switch (type) {
    case ncclFloat16:
      return to_wide(load(*static_cast<const __half*>(where)));
    case ncclBfloat16:
      return to_wide(load(*static_cast<const __nv_bfloat16*>(where)));
    case ncclFloat32:
      return to_wide(*static_cast<const float*>(where));
    case ncclFloat64:
      return *static_cast<const double*>(where);
    default:
      return 1;
  }
}

// What the rank multiplies its values by before they are added.
double factor(const Posting& posting) {
  if (posting.part.op < ncclNumOps) return 1;
  const Scale& scale = posting.comm->scales[static_cast<std::size_t>(posting.part.op - ncclNumOps)];
  return scale.device == nullptr ? scale.value : value_at(scale.device, scale.type);
}

template <class T>
void reduce_as(const std::vector<Posting*>& ranks, std::size_t count, char* result) {
  using A = Accumulator<T>;
  const ncclRedOp_t op = ranks.front()->part.op;
  for (std::size_t i = 0; i < count; ++i) {
    A sum{};
    for (std::size_t r = 0; r < ranks.size(); ++r) {
      T raw;
      std::memcpy(&raw, static_cast<const char*>(translate(ranks[r]->part.send)) + i * sizeof(T), sizeof(T));
      A value = load<T>(raw);
      if (op >= ncclNumOps) value = static_cast<A>(value * static_cast<A>(factor(*ranks[r])));
      sum = r == 0 ? value : combine(sum, value, op);
    }
    if (op == ncclAvg) sum = static_cast<A>(sum / static_cast<A>(ranks.size()));
    const T rounded = store<T>(sum);
    std::memcpy(result + i * sizeof(T), &rounded, sizeof(T));
  }
}

std::vector<char> reduce(const std::vector<Posting*>& ranks, std::size_t count) {
  const ncclDataType_t type = ranks.front()->part.type;
  std::vector<char> result(count * type_bytes(type));
  switch (type) {
    case ncclInt8:
      reduce_as<std::int8_t>(ranks, count, result.data());
      break;
    case ncclUint8:
      reduce_as<std::uint8_t>(ranks, count, result.data());
      break;
    case ncclInt32:
      reduce_as<std::int32_t>(ranks, count, result.data());
      break;
    case ncclUint32:
      reduce_as<std::uint32_t>(ranks, count, result.data());
      break;
    case ncclInt64:
      reduce_as<std::int64_t>(ranks, count, result.data());
      break;
    case ncclUint64:
      reduce_as<std::uint64_t>(ranks, count, result.data());
      break;
    case ncclFloat16:
      reduce_as<__half>(ranks, count, result.data());
      break;
    case ncclBfloat16:
      reduce_as<__nv_bfloat16>(ranks, count, result.data());
      break;
    case ncclFloat32:
      reduce_as<float>(ranks, count, result.data());
      break;
    case ncclFloat64:
      reduce_as<double>(ranks, count, result.data());
      break;
    default:
      break;  // refused when it was called
  }
  return result;
}

// What all ranks' send buffers make, before any receive buffer is written: calls may be in place.
std::vector<char> outcome(const std::vector<Posting*>& ranks) {
  const Part& first = ranks.front()->part;
  if (first.kind == Kind::reduce_scatter) return reduce(ranks, first.count * ranks.size());
  if (is_reduction(first)) return reduce(ranks, first.count);
  const std::size_t bytes = first.count * type_bytes(first.type);
  std::vector<char> all;
  for (const Posting* rank : ranks) {
    if (first.kind == Kind::broadcast && rank->comm->rank != first.peer) continue;
    const auto* const from = static_cast<const char*>(translate(rank->part.send));
    all.insert(all.end(), from, from + bytes);
  }
  return all;
}

bool agree(const std::vector<Posting*>& ranks) {
  const Posting& first = *ranks.front();
  const auto differs = [&](const Posting* other) {
    const Part& a = first.part;
    const Part& b = other->part;
    const bool rooted = a.kind == Kind::reduce || a.kind == Kind::broadcast;
    return a.kind != b.kind || a.count != b.count || a.type != b.type || (is_reduction(a) && a.op != b.op) ||
           (rooted && a.peer != b.peer);
  };
  const auto odd = std::find_if(ranks.begin(), ranks.end(), differs);
  if (odd == ranks.end()) return true;
  report("MISMATCH", name(*first.comm) + ": " + describe(first.part) + " meets, at " + name(*(*odd)->comm) + ", " +
                         describe((*odd)->part));
  return false;
}

ncclResult_t issue_collective(Lock& lock, ncclComm_t handle, cudaStream_t stream, const Part& part) {
  if (is_reduction(part)) {
    const Comm comm = find_comm(handle);
    if (!comm) return ncclInvalidArgument;
    if (part.type >= ncclFloat8e4m3) return fail(comm, ncclInvalidArgument, describe(part) + ": not emulated");
    const auto own = static_cast<std::size_t>(part.op - std::min(part.op, ncclNumOps));
    if (part.op >= ncclNumOps && (own >= comm->scales.size() || !comm->scales[own].alive))
      return fail(comm, ncclInvalidArgument, describe(part) + ": there is no such operator");
  }
  return issue(lock, handle, stream, part);
}

}  // namespace

std::size_t type_bytes(ncclDataType_t type) {
  constexpr std::size_t bytes[] = {1, 1, 4, 4, 8, 8, 2, 4, 8, 2, 1, 1};
  return type >= 0 && type < ncclNumTypes ? bytes[type] : 0;
}

bool is_reduction(const Part& part) {
  return part.kind == Kind::all_reduce || part.kind == Kind::reduce || part.kind == Kind::reduce_scatter;
}

std::string describe(const Part& part) {
  constexpr const char* names[] = {"ncclSend",      "ncclRecv",          "ncclAllReduce", "ncclReduce",
                                   "ncclBroadcast", "ncclReduceScatter", "ncclAllGather"};
  std::string text = names[static_cast<int>(part.kind)];
  text += " of " + std::to_string(part.count) + " " + (type_bytes(part.type) > 0 ? type_names[part.type] : "?");
  if (is_reduction(part)) text += ", operator " + std::to_string(part.op);
  if (part.kind == Kind::send) text += " to " + std::to_string(part.peer);
  if (part.kind == Kind::recv) text += " from " + std::to_string(part.peer);
  if (part.kind == Kind::reduce || part.kind == Kind::broadcast) text += ", root " + std::to_string(part.peer);
  return text;
}

std::size_t send_bytes(const Part& part, const ncclComm& comm) {
  if (part.kind == Kind::recv || (part.kind == Kind::broadcast && part.peer != comm.rank)) return 0;
  const std::size_t bytes = part.count * type_bytes(part.type);
  return part.kind == Kind::reduce_scatter ? bytes * static_cast<std::size_t>(comm.world->size) : bytes;
}

std::size_t recv_bytes(const Part& part, const ncclComm& comm) {
  if (part.kind == Kind::send || (part.kind == Kind::reduce && part.peer != comm.rank)) return 0;
  const std::size_t bytes = part.count * type_bytes(part.type);
  return part.kind == Kind::all_gather ? bytes * static_cast<std::size_t>(comm.world->size) : bytes;
}

void run_collective(const std::vector<Posting*>& ranks) {
  const auto reachable = [](const Posting* rank) {
    const Part& part = rank->part;
    return is_reachable(part.send, send_bytes(part, *rank->comm)) &&
           is_reachable(part.recv, recv_bytes(part, *rank->comm));
  };
  if (!agree(ranks) || !std::all_of(ranks.begin(), ranks.end(), reachable)) return;
  const std::vector<char> result = outcome(ranks);
  for (const Posting* rank : ranks) {
    const std::size_t bytes = recv_bytes(rank->part, *rank->comm);
    const bool scattered = rank->part.kind == Kind::reduce_scatter;
    const std::size_t offset = scattered ? bytes * static_cast<std::size_t>(rank->comm->rank) : 0;
    if (bytes > 0) std::memcpy(translate(rank->part.recv), result.data() + offset, bytes);
  }
}

}  // namespace kith::gpu_emulator::detail

using namespace kith::gpu_emulator::detail;

extern "C" {

ncclResult_t ncclAllReduce(const void* send, void* recv, size_t count, ncclDataType_t type, ncclRedOp_t op,
                           ncclComm_t comm, cudaStream_t stream) {
  return nccl_call("ncclAllReduce", [&](Lock& lock) {
    return issue_collective(lock, comm, stream, {Kind::all_reduce, send, recv, count, type, 0, op});
  });
}

ncclResult_t ncclReduce(const void* send, void* recv, size_t count, ncclDataType_t type, ncclRedOp_t op, int root,
                        ncclComm_t comm, cudaStream_t stream) {
  return nccl_call("ncclReduce", [&](Lock& lock) {
    return issue_collective(lock, comm, stream, {Kind::reduce, send, recv, count, type, root, op});
  });
}

ncclResult_t ncclBroadcast(const void* send, void* recv, size_t count, ncclDataType_t type, int root, ncclComm_t comm,
                           cudaStream_t stream) {
  return nccl_call("ncclBroadcast", [&](Lock& lock) {
    return issue_collective(lock, comm, stream, {Kind::broadcast, send, recv, count, type, root, ncclSum});
  });
}

ncclResult_t ncclBcast(void* buffer, size_t count, ncclDataType_t type, int root, ncclComm_t comm,
                       cudaStream_t stream) {
  return nccl_call("ncclBcast", [&](Lock& lock) {
    return issue_collective(lock, comm, stream, {Kind::broadcast, buffer, buffer, count, type, root, ncclSum});
  });
}

ncclResult_t ncclReduceScatter(const void* send, void* recv, size_t count, ncclDataType_t type, ncclRedOp_t op,
                               ncclComm_t comm, cudaStream_t stream) {
  return nccl_call("ncclReduceScatter", [&](Lock& lock) {
    return issue_collective(lock, comm, stream, {Kind::reduce_scatter, send, recv, count, type, 0, op});
  });
}

ncclResult_t ncclAllGather(const void* send, void* recv, size_t count, ncclDataType_t type, ncclComm_t comm,
                           cudaStream_t stream) {
  return nccl_call("ncclAllGather", [&](Lock& lock) {
    return issue_collective(lock, comm, stream, {Kind::all_gather, send, recv, count, type, 0, ncclSum});
  });
}

ncclResult_t ncclRedOpCreatePreMulSum(ncclRedOp_t* op, void* scalar, ncclDataType_t type,
                                      ncclScalarResidence_t residence, ncclComm_t handle) {
  return nccl_call("ncclRedOpCreatePreMulSum", [&](Lock& lock) -> ncclResult_t {
    const Comm comm = find_comm(handle);
    if (!comm || op == nullptr || scalar == nullptr) return ncclInvalidArgument;
    if (const ncclResult_t failed = check_comm(lock, comm)) return failed;
    if (type != ncclFloat16 && type != ncclBfloat16 && type != ncclFloat32 && type != ncclFloat64)
      return fail(comm, ncclInvalidArgument, "a factor of this type is not emulated");
    const bool immediate = residence == ncclScalarHostImmediate;
    comm->scales.push_back({true, type, immediate ? nullptr : scalar, immediate ? value_at(scalar, type) : 1});
    *op = static_cast<ncclRedOp_t>(ncclNumOps + static_cast<int>(comm->scales.size()) - 1);
    return ncclSuccess;
  });
}

ncclResult_t ncclRedOpDestroy(ncclRedOp_t op, ncclComm_t handle) {
  return nccl_call("ncclRedOpDestroy", [&](Lock&) -> ncclResult_t {
    const Comm comm = find_comm(handle);
    if (!comm || op < ncclNumOps || static_cast<std::size_t>(op - ncclNumOps) >= comm->scales.size())
      return ncclInvalidArgument;
    comm->scales[static_cast<std::size_t>(op - ncclNumOps)].alive = false;
    return ncclSuccess;
  });
}
}
