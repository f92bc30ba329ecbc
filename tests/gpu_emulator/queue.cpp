// SPDX-License-Identifier: Apache-2.0
#include "queue.hpp"

#include <algorithm>
#include <chrono>
#include <map>
#include <utility>

#include "capture.hpp"
#include "memory.hpp"

namespace kith::gpu_emulator::detail {
namespace {

struct Streams {
  std::vector<std::unique_ptr<Stream>> all;  // destroyed ones too while they have work
  std::map<int, Stream*> legacy_default;     // by device
  Clock completed;                           // by stream: the last operation that has ended
  Clock host;
  std::vector<StreamId> free_ids;
  std::map<int, Clock> gone;                        // by device: what streams that are no more have done
  std::uint64_t deadlocked_at = ~std::uint64_t{0};  // the activity at the last deadlock that was reported
};

Streams& streams() {
  static auto* const all = new Streams;
  return *all;
}

bool is_legacy(const Stream& stream) {
  const auto found = streams().legacy_default.find(stream.device);
  return found != streams().legacy_default.end() && found->second == &stream;
}

// The legacy default stream and every stream that was not created with cudaStreamNonBlocking wait for each other.
std::vector<Point> implicit_waits(Stream& stream) {
  std::vector<Point> waits;
  if ((stream.flags & cudaStreamNonBlocking) != 0) return waits;
  const bool legacy = is_legacy(stream);
  for (const auto& other : streams().all) {
    if (other.get() == &stream || other->device != stream.device) continue;
    if (legacy ? (other->flags & cudaStreamNonBlocking) != 0 : !is_legacy(*other)) continue;
    join(stream.clock, other->clock);
    if (!other->queue.empty()) waits.push_back({other->id, other->number});
  }
  return waits;
}

// An identifier is used again: its numbers go on, so clocks that know of the earlier stream stay right.
void remove_ended_streams() {
  auto& all = streams().all;
  const auto ended = [](const std::unique_ptr<Stream>& stream) {
    if (!stream->destroyed || !stream->queue.empty() || stream->running) return false;
    streams().free_ids.push_back(stream->id);
    join(streams().gone[stream->device], stream->clock);
    return true;
  };
  all.erase(std::remove_if(all.begin(), all.end(), ended), all.end());
}

void call_host_function(Lock& lock, Stream& stream) {
  const std::shared_ptr<const Work> work = stream.queue.front().work;
  stream.running = true;
  ++core().host_functions;
  lock.unlock();
  work->host_function();
  lock.lock();
  --core().host_functions;
  stream.running = false;
}

// Runs the first operation of the stream if it can run to its end now.
bool advance(Lock& lock, Stream& stream) {
  if (stream.running || stream.queue.empty()) return false;
  Operation& operation = stream.queue.front();
  if (!std::all_of(operation.waits.begin(), operation.waits.end(), reached)) return false;
  if (operation.work->host_function) call_host_function(lock, stream);
  if (operation.step && !operation.step()) return false;
  raise(streams().completed, stream.id, operation.number);
  stream.queue.pop_front();
  return true;
}

Stream& create_built_in_stream() {
  Stream& stream = create_stream(cudaStreamDefault, 0);
  stream.built_in = true;
  return stream;
}

std::string blocked_streams() {
  std::string text;
  for (const auto& stream : streams().all)
    if (!stream->queue.empty())
      text += (text.empty() ? "" : "; ") + where(*stream) + " is at " + stream->queue.front().work->what;
  return text.empty() ? "no stream has work" : text;
}

}  // namespace

std::string where(const Stream& stream) {
  const std::string owner =
      stream.rank >= 0 ? "rank " + std::to_string(stream.rank) : "device " + std::to_string(stream.device);
  return owner + ", " + (is_legacy(stream) ? "default stream" : "stream " + std::to_string(stream.id));
}

Stream& create_stream(unsigned flags, int priority) {
  auto stream = std::make_unique<Stream>();
  if (streams().free_ids.empty()) {
    stream->id = streams().completed.size();
    streams().completed.push_back(0);
  } else {
    stream->id = streams().free_ids.back();
    streams().free_ids.pop_back();
    stream->number = streams().completed[stream->id];
  }
  stream->device = this_thread().device;
  stream->rank = this_thread().rank;
  stream->flags = flags;
  stream->priority = priority;
  return *streams().all.emplace_back(std::move(stream));
}

void destroy_stream(Stream& stream) {
  stream.destroyed = true;
  remove_ended_streams();
}

std::vector<Stream*> all_streams() {
  std::vector<Stream*> found;
  for (const auto& stream : streams().all) found.push_back(stream.get());
  return found;
}

Stream* find_stream(cudaStream_t handle) {
  if (handle == nullptr || handle == cudaStreamLegacy) {
    Stream*& stream = streams().legacy_default[this_thread().device];
    if (stream == nullptr) stream = &create_built_in_stream();
    return stream;
  }
  if (handle == cudaStreamPerThread) {
    thread_local std::map<int, Stream*> mine;
    Stream*& stream = mine[this_thread().device];
    if (stream == nullptr) stream = &create_built_in_stream();
    return stream;
  }
  for (const auto& stream : streams().all)
    if (stream.get() == handle && !stream->destroyed) return handle;
  report("INVALID-HANDLE", "a stream that was destroyed, or never created, is used");
  return nullptr;
}

cudaError_t enqueue(Stream& stream, std::shared_ptr<const Work> work, std::vector<Point> waits) {
  if (stream.capture) return capture_work(stream, std::move(work));
  if (is_legacy(stream))
    for (const auto& other : streams().all)
      if (other->capture && other->device == stream.device && (other->flags & cudaStreamNonBlocking) == 0)
        return cudaErrorStreamCaptureImplicit;
  for (const Point& point : implicit_waits(stream)) waits.push_back(point);
  join(stream.clock, host_clock());
  raise(stream.clock, stream.id, ++stream.number);
  const Moment moment{stream.id, stream.number, stream.clock, where(stream)};
  bool possible = true;
  for (const Access& access : work->accesses) {
    if (access.bytes == 0) continue;
    check_bounds(access, moment.where, work->is_copy ? -1 : stream.device);
    possible = possible && is_reachable(access.begin, access.bytes);
    record_access(access, moment);
  }
  // Work that would end in a fault is left out; only a group must go on, for its peers' sake.
  Step step = work->start && (possible || work->cancelled) ? work->start() : Step{};
  stream.queue.push_back({stream.number, std::move(work), std::move(waits), std::move(step)});
  acted();
  return cudaSuccess;
}

bool reached(const Point& point) { return at(streams().completed, point.stream) >= point.number; }

bool pump(Lock& lock) {
  bool any = false;
  for (bool moved = true; moved;) {
    const std::uint64_t before = core().activity;
    moved = false;
    // By index: a host function lets other threads create streams meanwhile.
    for (std::size_t i = 0; i < streams().all.size(); ++i)
      while (i < streams().all.size() && advance(lock, *streams().all[i])) moved = true;
    moved = moved || before != core().activity;  // a post may have completed what another stream waits for
    any = any || moved;
  }
  if (any) {
    remove_ended_streams();
    ++core().activity;
    core().changed.notify_all();
  }
  return any;
}

bool drain(Lock& lock, const std::function<bool()>& done, const std::string& what) {
  using Time = std::chrono::steady_clock;
  while (!done() && pump(lock)) {
  }
  std::uint64_t seen = core().activity;
  Time::time_point since = Time::now();
  const bool limited = core().options.deadlock_ms > 0;
  if (limited && !done() && streams().deadlocked_at == seen) return false;  // reported, and nothing has happened since
  while (!done()) {
    if (pump(lock) || done()) continue;
    if (core().host_functions == 0 && limited) {
      if (seen != core().activity) {
        seen = core().activity;
        since = Time::now();
      } else if (Time::now() - since > std::chrono::milliseconds(core().options.deadlock_ms)) {
        report("DEADLOCK", what + " waits in vain: " + blocked_streams());
        streams().deadlocked_at = core().activity;
        return false;
      }
    }
    core().changed.wait_for(lock, std::chrono::milliseconds(20));
  }
  return true;
}

const Clock& clock_of_ended_streams(int device) { return streams().gone[device]; }

Clock& host_clock() { return streams().host; }

bool in_flight(const char* begin, const char* end, std::string& what) {
  for (const auto& stream : streams().all)
    for (const Operation& operation : stream->queue) {
      if (operation.work->cancelled && operation.work->cancelled()) continue;
      for (const Access& access : operation.work->accesses)
        if (access.begin < end && begin < access.begin + access.bytes) {
          what = where(*stream) + ": " + access.what;
          return true;
        }
    }
  return false;
}

}  // namespace kith::gpu_emulator::detail
