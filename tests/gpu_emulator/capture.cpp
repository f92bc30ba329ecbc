// SPDX-License-Identifier: Apache-2.0
#include "capture.hpp"

#include <algorithm>
#include <utility>

#include "core.hpp"
#include "memory.hpp"

struct CUgraph_st {
  std::vector<std::shared_ptr<const kith::gpu_emulator::detail::Work>> nodes{};
};

struct CUgraphExec_st {
  std::vector<std::shared_ptr<const kith::gpu_emulator::detail::Work>> nodes{};
};

namespace kith::gpu_emulator::detail {
namespace {

struct Graphs {
  std::vector<std::shared_ptr<Capture>> captures;  // going on
  std::vector<std::unique_ptr<CUgraph_st>> graphs;
  std::vector<std::unique_ptr<CUgraphExec_st>> executables;
  unsigned long long ids = 0;
};

Graphs& graphs() {
  static auto* const all = new Graphs;
  return *all;
}

cudaError_t begin(Stream& stream, cudaStreamCaptureMode mode) {
  if (find_stream(nullptr) == &stream) return cudaErrorStreamCaptureUnsupported;
  if (stream.capture) return cudaErrorIllegalState;
  auto capture = std::make_shared<Capture>();
  capture->id = ++graphs().ids;
  capture->origin = &stream;
  capture->mode = mode;
  capture->thread = std::this_thread::get_id();
  capture->lanes[&stream] = {};
  stream.capture = capture;
  graphs().captures.push_back(std::move(capture));
  return cudaSuccess;
}

cudaError_t end(Stream& stream, cudaGraph_t* handle) {
  const std::shared_ptr<Capture> capture = stream.capture;
  if (!capture) return cudaErrorIllegalState;
  if (capture->origin != &stream) return cudaErrorStreamCaptureUnmatched;
  if (capture->mode != cudaStreamCaptureModeRelaxed && capture->thread != std::this_thread::get_id())
    return cudaErrorStreamCaptureWrongThread;
  const Clock& last = capture->lanes[&stream];
  const bool joined = std::all_of(capture->numbers.begin(), capture->numbers.end(),
                                  [&](const auto& lane) { return at(last, lane.first) >= lane.second; });
  for (const auto& lane : capture->lanes) lane.first->capture.reset();
  capture->ended = true;
  auto& going_on = graphs().captures;
  going_on.erase(std::find(going_on.begin(), going_on.end(), capture));
  *handle = nullptr;
  if (capture->invalid) return cudaErrorStreamCaptureInvalidated;
  if (!joined) return cudaErrorStreamCaptureUnjoined;
  *handle = graphs().graphs.emplace_back(std::make_unique<CUgraph_st>(CUgraph_st{capture->nodes})).get();
  return cudaSuccess;
}

template <class Handle, class List>
cudaError_t destroy(Handle handle, List& list) {
  for (auto entry = list.begin(); entry != list.end(); ++entry)
    if (entry->get() == handle) {
      list.erase(entry);
      return cudaSuccess;
    }
  report("INVALID-HANDLE", "a graph that was destroyed, or never made, is used");
  return cudaErrorInvalidValue;
}

template <class Handle, class List>
bool is_alive(Handle handle, const List& list) {
  return std::any_of(list.begin(), list.end(), [&](const auto& entry) { return entry.get() == handle; });
}

cudaError_t instantiate(cudaGraphExec_t* handle, cudaGraph_t graph) {
  if (handle == nullptr || !is_alive(graph, graphs().graphs)) return cudaErrorInvalidValue;
  *handle = graphs().executables.emplace_back(std::make_unique<CUgraphExec_st>(CUgraphExec_st{graph->nodes})).get();
  return cudaSuccess;
}

cudaError_t capture_info(cudaStream_t handle, cudaStreamCaptureStatus* status, unsigned long long* id) {
  const Stream* const stream = find_stream(handle);
  if (stream == nullptr) return cudaErrorInvalidResourceHandle;
  if (status == nullptr) return cudaErrorInvalidValue;
  *status = cudaStreamCaptureStatusNone;
  if (!stream->capture) return cudaSuccess;
  *status = stream->capture->invalid ? cudaStreamCaptureStatusInvalidated : cudaStreamCaptureStatusActive;
  if (id != nullptr) *id = stream->capture->id;
  return cudaSuccess;
}

}  // namespace

cudaError_t capture_work(Stream& stream, std::shared_ptr<const Work> work) {
  Capture& capture = *stream.capture;
  if (capture.invalid) return cudaErrorStreamCaptureInvalidated;
  Clock& clock = capture.lanes[&stream];
  raise(clock, stream.id, ++capture.numbers[stream.id]);
  const Moment moment{stream.id, capture.numbers[stream.id], clock, where(stream) + " (captured)"};
  for (const Access& access : work->accesses) {
    if (access.bytes == 0) continue;
    check_bounds(access, moment.where, work->is_copy ? -1 : stream.device);
    capture.history.add(access, moment, {});
  }
  capture.nodes.push_back(std::move(work));
  return cudaSuccess;
}

cudaError_t capture_wait(Stream& stream, const std::shared_ptr<Capture>& capture, const Clock& clock) {
  if (!capture) {
    stream.capture->invalid = true;
    return cudaErrorStreamCaptureIsolation;
  }
  if (capture->ended) return cudaErrorCapturedEvent;
  if (stream.capture && stream.capture != capture) {
    stream.capture->invalid = capture->invalid = true;
    return cudaErrorStreamCaptureMerge;
  }
  if (capture->invalid) return cudaErrorStreamCaptureInvalidated;
  stream.capture = capture;
  // A wait is an operation of the stream too: one that is never joined is an error even if it is the last.
  Clock& mine = capture->lanes[&stream];
  join(mine, clock);
  raise(mine, stream.id, ++capture->numbers[stream.id]);
  return cudaSuccess;
}

cudaError_t refuse_while_capturing() {
  const cudaStreamCaptureMode mode = this_thread().capture_mode;
  if (mode == cudaStreamCaptureModeRelaxed) return cudaSuccess;
  cudaError_t result = cudaSuccess;
  for (const auto& capture : graphs().captures) {
    const bool mine = capture->thread == std::this_thread::get_id() && capture->mode != cudaStreamCaptureModeRelaxed;
    const bool any = mode == cudaStreamCaptureModeGlobal && capture->mode == cudaStreamCaptureModeGlobal;
    if (!mine && !any) continue;
    capture->invalid = true;
    result = cudaErrorStreamCaptureUnsupported;
  }
  return result;
}

cudaError_t refuse_capturing(Stream& stream) {
  stream.capture->invalid = true;
  return cudaErrorStreamCaptureUnsupported;
}

std::vector<std::string> live_graphs() {
  std::vector<std::string> all(graphs().graphs.size(), "a graph");
  all.insert(all.end(), graphs().executables.size(), "an executable graph");
  return all;
}

}  // namespace kith::gpu_emulator::detail

using namespace kith::gpu_emulator::detail;

extern "C" {

cudaError_t cudaStreamBeginCapture(cudaStream_t handle, cudaStreamCaptureMode mode) {
  return cuda_call("cudaStreamBeginCapture", [&](Lock&) -> cudaError_t {
    Stream* const stream = find_stream(handle);
    return stream == nullptr ? cudaErrorInvalidResourceHandle : begin(*stream, mode);
  });
}

cudaError_t cudaStreamEndCapture(cudaStream_t handle, cudaGraph_t* graph) {
  return cuda_call("cudaStreamEndCapture", [&](Lock&) -> cudaError_t {
    Stream* const stream = find_stream(handle);
    if (stream == nullptr) return cudaErrorInvalidResourceHandle;
    return graph == nullptr ? cudaErrorInvalidValue : end(*stream, graph);
  });
}

cudaError_t cudaStreamIsCapturing(cudaStream_t handle, cudaStreamCaptureStatus* status) {
  return cuda_call("cudaStreamIsCapturing", [&](Lock&) { return capture_info(handle, status, nullptr); });
}

cudaError_t cudaStreamGetCaptureInfo(cudaStream_t handle, cudaStreamCaptureStatus* status, unsigned long long* id,
                                     cudaGraph_t* graph, const cudaGraphNode_t** dependencies,
                                     const cudaGraphEdgeData** edges, size_t* count) {
  return cuda_call("cudaStreamGetCaptureInfo", [&](Lock&) {
    if (graph != nullptr) *graph = nullptr;  // nodes have no handles here
    if (dependencies != nullptr) *dependencies = nullptr;
    if (edges != nullptr) *edges = nullptr;
    if (count != nullptr) *count = 0;
    return capture_info(handle, status, id);
  });
}

cudaError_t cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode* mode) {
  return cuda_call("cudaThreadExchangeStreamCaptureMode", [&](Lock&) -> cudaError_t {
    if (mode == nullptr) return cudaErrorInvalidValue;
    std::swap(*mode, this_thread().capture_mode);
    return cudaSuccess;
  });
}

cudaError_t cudaGraphInstantiate(cudaGraphExec_t* executable, cudaGraph_t graph, unsigned long long) {
  return cuda_call("cudaGraphInstantiate", [&](Lock&) { return instantiate(executable, graph); });
}

cudaError_t cudaGraphInstantiateWithFlags(cudaGraphExec_t* executable, cudaGraph_t graph, unsigned long long) {
  return cuda_call("cudaGraphInstantiateWithFlags", [&](Lock&) { return instantiate(executable, graph); });
}

cudaError_t cudaGraphUpload(cudaGraphExec_t executable, cudaStream_t) {
  return cuda_call("cudaGraphUpload", [&](Lock&) {
    return is_alive(executable, graphs().executables) ? cudaSuccess : cudaErrorInvalidValue;
  });
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t executable, cudaStream_t handle) {
  return cuda_call("cudaGraphLaunch", [&](Lock&) -> cudaError_t {
    Stream* const stream = find_stream(handle);
    if (stream == nullptr) return cudaErrorInvalidResourceHandle;
    if (!is_alive(executable, graphs().executables)) return cudaErrorInvalidValue;
    for (const auto& work : executable->nodes)
      if (const cudaError_t failed = enqueue(*stream, work)) return failed;
    return cudaSuccess;
  });
}

cudaError_t cudaGraphGetNodes(cudaGraph_t graph, cudaGraphNode_t*, size_t* count) {
  return cuda_call("cudaGraphGetNodes", [&](Lock&) -> cudaError_t {
    if (count == nullptr || !is_alive(graph, graphs().graphs)) return cudaErrorInvalidValue;
    *count = graph->nodes.size();
    return cudaSuccess;
  });
}

cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  return cuda_call("cudaGraphDestroy", [&](Lock&) { return destroy(graph, graphs().graphs); });
}

cudaError_t cudaGraphExecDestroy(cudaGraphExec_t executable) {
  return cuda_call("cudaGraphExecDestroy", [&](Lock&) { return destroy(executable, graphs().executables); });
}
}
