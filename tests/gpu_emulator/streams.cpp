// SPDX-License-Identifier: Apache-2.0
// The functions of streams and events.
#include <algorithm>
#include <chrono>
#include <memory>
#include <utility>
#include <vector>

#include "capture.hpp"
#include "core.hpp"
#include "queue.hpp"

struct CUevent_st {
  using Clock = std::chrono::steady_clock;

  int device = 0;
  unsigned flags = 0;
  bool recorded = false;
  kith::gpu_emulator::detail::Point point{};
  kith::gpu_emulator::detail::Clock clock{};
  std::shared_ptr<kith::gpu_emulator::detail::Capture> capture{};
  std::shared_ptr<Clock::time_point> time{};  // its own allocation: the event may be gone when the stream gets there
};

namespace kith::gpu_emulator::detail {
namespace {

std::vector<std::unique_ptr<CUevent_st>>& events() {
  static auto* const all = new std::vector<std::unique_ptr<CUevent_st>>;
  return *all;
}

CUevent_st* find_event(cudaEvent_t handle) {
  for (const auto& event : events())
    if (event.get() == handle) return handle;
  report("INVALID-HANDLE", "an event that was destroyed, or never created, is used");
  return nullptr;
}

cudaError_t create_event(cudaEvent_t* handle, unsigned flags) {
  if (handle == nullptr) return cudaErrorInvalidValue;
  auto event = std::make_unique<CUevent_st>();
  event->device = this_thread().device;
  event->flags = flags;
  *handle = events().emplace_back(std::move(event)).get();
  return cudaSuccess;
}

cudaError_t record(cudaEvent_t handle, cudaStream_t stream_handle) {
  CUevent_st* const event = find_event(handle);
  Stream* const stream = find_stream(stream_handle);
  if (event == nullptr || stream == nullptr || event->device != stream->device) return cudaErrorInvalidResourceHandle;
  event->recorded = true;
  event->capture = stream->capture;
  if (stream->capture) {
    event->clock = stream->capture->lanes[stream];
    return cudaSuccess;
  }
  const auto time = std::make_shared<CUevent_st::Clock::time_point>();
  Work work{"cudaEventRecord"};
  work.start = [time]() -> Step {
    return [time] {
      *time = CUevent_st::Clock::now();
      return true;
    };
  };
  if (const cudaError_t failed = enqueue(*stream, std::make_shared<const Work>(std::move(work)))) return failed;
  event->time = time;
  event->point = {stream->id, stream->number};
  event->clock = stream->clock;
  return cudaSuccess;
}

cudaError_t wait(cudaStream_t stream_handle, cudaEvent_t handle) {
  CUevent_st* const event = find_event(handle);
  Stream* const stream = find_stream(stream_handle);
  if (event == nullptr || stream == nullptr) return cudaErrorInvalidResourceHandle;
  if (!event->recorded) {
    report("EVENT-NEVER-RECORDED", where(*stream) + " waits for an event that was never recorded: that does nothing");
    return cudaSuccess;
  }
  if (event->capture || stream->capture) return capture_wait(*stream, event->capture, event->clock);
  static const auto work = std::make_shared<const Work>(Work{"cudaStreamWaitEvent"});
  join(stream->clock, event->clock);
  return enqueue(*stream, work, {event->point});
}

// What the host has waited for comes before all that it enqueues from now on.
cudaError_t synchronize(Lock& lock, Stream& stream, const char* name) {
  if (stream.capture) return refuse_capturing(stream);
  if (const cudaError_t refused = refuse_while_capturing()) return refused;
  const Point end{stream.id, stream.number};
  const Clock clock = stream.clock;
  if (!drain(
          lock, [&] { return reached(end); }, where(stream) + ": " + name))
    return cudaErrorLaunchTimeout;
  join(host_clock(), clock);
  return cudaSuccess;
}

cudaError_t query(Lock& lock, const Point& point, const Clock& clock) {
  pump(lock);
  if (!reached(point)) return cudaErrorNotReady;
  join(host_clock(), clock);
  return cudaSuccess;
}

}  // namespace

std::vector<std::string> live_streams_and_events() {
  std::vector<std::string> all;
  for (const Stream* stream : all_streams())
    if (!stream->destroyed && !stream->built_in) all.push_back("a stream: " + where(*stream));
  for (const auto& event : events()) all.push_back("an event (device " + std::to_string(event->device) + ")");
  return all;
}

}  // namespace kith::gpu_emulator::detail

using namespace kith::gpu_emulator::detail;

extern "C" {

cudaError_t cudaStreamCreateWithPriority(cudaStream_t* handle, unsigned int flags, int priority) {
  return cuda_call("cudaStreamCreateWithPriority", [&](Lock&) -> cudaError_t {
    if (handle == nullptr) return cudaErrorInvalidValue;
    *handle = &create_stream(flags, priority);
    return cudaSuccess;
  });
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* handle, unsigned int flags) {
  return cuda_call("cudaStreamCreateWithFlags", [&](Lock&) -> cudaError_t {
    if (handle == nullptr) return cudaErrorInvalidValue;
    *handle = &create_stream(flags, 0);
    return cudaSuccess;
  });
}

cudaError_t cudaStreamCreate(cudaStream_t* handle) {
  return cuda_call("cudaStreamCreate", [&](Lock&) -> cudaError_t {
    if (handle == nullptr) return cudaErrorInvalidValue;
    *handle = &create_stream(cudaStreamDefault, 0);
    return cudaSuccess;
  });
}

cudaError_t cudaStreamDestroy(cudaStream_t handle) {
  return cuda_call("cudaStreamDestroy", [&](Lock&) -> cudaError_t {
    Stream* const stream = find_stream(handle);
    if (stream == nullptr || handle == nullptr) return cudaErrorInvalidResourceHandle;
    if (!stream->queue.empty())
      report("STREAM-DESTROYED-BUSY", where(*stream) + " still has to do " + stream->queue.front().work->what);
    destroy_stream(*stream);
    return cudaSuccess;
  });
}

cudaError_t cudaStreamSynchronize(cudaStream_t handle) {
  return cuda_call("cudaStreamSynchronize", [&](Lock& lock) -> cudaError_t {
    Stream* const stream = find_stream(handle);
    return stream == nullptr ? cudaErrorInvalidResourceHandle : synchronize(lock, *stream, "cudaStreamSynchronize");
  });
}

cudaError_t cudaStreamQuery(cudaStream_t handle) {
  return cuda_call("cudaStreamQuery", [&](Lock& lock) -> cudaError_t {
    Stream* const stream = find_stream(handle);
    if (stream == nullptr) return cudaErrorInvalidResourceHandle;
    if (stream->capture) return refuse_capturing(*stream);
    if (const cudaError_t refused = refuse_while_capturing()) return refused;
    return query(lock, {stream->id, stream->number}, Clock{stream->clock});
  });
}

cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned int) {
  return cuda_call("cudaStreamWaitEvent", [&](Lock&) { return wait(stream, event); });
}

cudaError_t cudaStreamGetPriority(cudaStream_t handle, int* priority) {
  return cuda_call("cudaStreamGetPriority", [&](Lock&) -> cudaError_t {
    const Stream* const stream = find_stream(handle);
    if (stream == nullptr) return cudaErrorInvalidResourceHandle;
    *priority = stream->priority;
    return cudaSuccess;
  });
}

cudaError_t cudaStreamGetFlags(cudaStream_t handle, unsigned int* flags) {
  return cuda_call("cudaStreamGetFlags", [&](Lock&) -> cudaError_t {
    const Stream* const stream = find_stream(handle);
    if (stream == nullptr) return cudaErrorInvalidResourceHandle;
    *flags = stream->flags;
    return cudaSuccess;
  });
}

cudaError_t cudaStreamGetDevice(cudaStream_t handle, int* device) {
  return cuda_call("cudaStreamGetDevice", [&](Lock&) -> cudaError_t {
    const Stream* const stream = find_stream(handle);
    if (stream == nullptr) return cudaErrorInvalidResourceHandle;
    *device = stream->device;
    return cudaSuccess;
  });
}

cudaError_t cudaDeviceGetStreamPriorityRange(int* least, int* greatest) {
  return cuda_call("cudaDeviceGetStreamPriorityRange", [&](Lock&) {
    if (least != nullptr) *least = 0;
    if (greatest != nullptr) *greatest = -5;
    return cudaSuccess;
  });
}

cudaError_t cudaDeviceSynchronize() {
  return cuda_call("cudaDeviceSynchronize", [&](Lock& lock) -> cudaError_t {
    std::vector<Point> ends;
    Clock clock;
    for (Stream* stream : all_streams()) {
      if (stream->device != this_thread().device) continue;
      if (stream->capture) return refuse_capturing(*stream);
      ends.push_back({stream->id, stream->number});
      join(clock, stream->clock);
    }
    if (const cudaError_t refused = refuse_while_capturing()) return refused;
    const auto done = [&] { return std::all_of(ends.begin(), ends.end(), reached); };
    if (!drain(lock, done, "cudaDeviceSynchronize")) return cudaErrorLaunchTimeout;
    join(host_clock(), clock);
    join(host_clock(), clock_of_ended_streams(this_thread().device));
    return cudaSuccess;
  });
}

cudaError_t cudaLaunchHostFunc(cudaStream_t handle, cudaHostFn_t function, void* data) {
  return cuda_call("cudaLaunchHostFunc", [&](Lock&) -> cudaError_t {
    Stream* const stream = find_stream(handle);
    if (stream == nullptr) return cudaErrorInvalidResourceHandle;
    Work work{"cudaLaunchHostFunc"};
    work.host_function = [=] { function(data); };
    return enqueue(*stream, std::make_shared<const Work>(std::move(work)));
  });
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned int flags) {
  return cuda_call("cudaEventCreateWithFlags", [&](Lock&) { return create_event(event, flags); });
}

cudaError_t cudaEventCreate(cudaEvent_t* event) {
  return cuda_call("cudaEventCreate", [&](Lock&) { return create_event(event, cudaEventDefault); });
}

cudaError_t cudaEventDestroy(cudaEvent_t handle) {
  return cuda_call("cudaEventDestroy", [&](Lock&) -> cudaError_t {
    if (find_event(handle) == nullptr) return cudaErrorInvalidResourceHandle;
    for (auto event = events().begin(); event != events().end(); ++event)
      if (event->get() == handle) {
        events().erase(event);
        break;
      }
    return cudaSuccess;
  });
}

cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  return cuda_call("cudaEventRecord", [&](Lock&) { return record(event, stream); });
}

cudaError_t cudaEventRecordWithFlags(cudaEvent_t event, cudaStream_t stream, unsigned int) {
  return cuda_call("cudaEventRecordWithFlags", [&](Lock&) { return record(event, stream); });
}

cudaError_t cudaEventQuery(cudaEvent_t handle) {
  return cuda_call("cudaEventQuery", [&](Lock& lock) -> cudaError_t {
    const CUevent_st* const event = find_event(handle);
    if (event == nullptr) return cudaErrorInvalidResourceHandle;
    if (event->capture) return cudaErrorCapturedEvent;
    if (const cudaError_t refused = refuse_while_capturing()) return refused;
    return event->recorded ? query(lock, event->point, Clock{event->clock}) : cudaSuccess;
  });
}

cudaError_t cudaEventSynchronize(cudaEvent_t handle) {
  return cuda_call("cudaEventSynchronize", [&](Lock& lock) -> cudaError_t {
    const CUevent_st* const event = find_event(handle);
    if (event == nullptr) return cudaErrorInvalidResourceHandle;
    if (event->capture) return cudaErrorCapturedEvent;
    if (const cudaError_t refused = refuse_while_capturing()) return refused;
    if (!event->recorded) return cudaSuccess;
    const Point end = event->point;
    const Clock clock = event->clock;  // the event may be recorded again while this waits
    if (!drain(
            lock, [&] { return reached(end); }, "cudaEventSynchronize"))
      return cudaErrorLaunchTimeout;
    join(host_clock(), clock);
    return cudaSuccess;
  });
}

cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t start_handle, cudaEvent_t end_handle) {
  return cuda_call("cudaEventElapsedTime", [&](Lock& lock) -> cudaError_t {
    const CUevent_st* const start = find_event(start_handle);
    const CUevent_st* const end = find_event(end_handle);
    if (start == nullptr || end == nullptr || !start->time || !end->time) return cudaErrorInvalidResourceHandle;
    if (((start->flags | end->flags) & cudaEventDisableTiming) != 0) return cudaErrorInvalidResourceHandle;
    pump(lock);
    if (!reached(start->point) || !reached(end->point)) return cudaErrorNotReady;
    *milliseconds = std::chrono::duration<float, std::milli>(*end->time - *start->time).count();
    return cudaSuccess;
  });
}
}
