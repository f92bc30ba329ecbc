// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <optional>
#include <span>
#include <type_traits>
#include <utility>
#include <vector>

#include <kith/communicator.hpp>
#include <kith/cuda/kernels.hpp>
#include <kith/cuda/range.hpp>
#include <kith/cuda/resources.hpp>
#include <kith/cuda/round.hpp>
#include <kith/error.hpp>
#include <kith/exchange/finite.hpp>
#include <kith/topology.hpp>
#include <kith/types.hpp>
#include <kith/view.hpp>

namespace kith::detail {

/// How a model travels from device to device: large buffers from where they are, small ones packed into one bucket.
class DeviceLayout {
public:
  /// A stretch of the message: a buffer, or what the bucket holds of one dtype.
  struct Stretch {
    std::size_t offset;
    std::size_t count;
    DType dtype;
    std::size_t buffer;  // in_bucket: several
  };
  static constexpr std::size_t in_bucket = static_cast<std::size_t>(-1);
  static constexpr std::size_t alignment = 256;

  DeviceLayout(std::span<const BufferView> buffers, std::size_t pack_below) {
    places_.resize(buffers.size());
    for (const DType dtype : {DType::f32, DType::f64, DType::f16, DType::bf16}) {
      bytes_ = round_up(bytes_);
      const std::size_t begin = bytes_;
      for (std::size_t b = 0; b < buffers.size(); ++b) {
        if (buffers[b].dtype != dtype || buffers[b].count == 0 || buffers[b].bytes() >= pack_below) continue;
        places_[b] = bytes_;
        packed_.push_back(b);
        bytes_ += (buffers[b].bytes() + 15) / 16 * 16;
      }
      if (bytes_ > begin) stretches_.push_back({begin, (bytes_ - begin) / size_of(dtype), dtype, in_bucket});
    }
    bucket_bytes_ = bytes_;
    for (std::size_t b = 0; b < buffers.size(); ++b) {
      if (buffers[b].bytes() < pack_below || buffers[b].count == 0) continue;
      // Equal to the buffer's own address modulo 16, so that both can be read 16 bytes at a time.
      places_[b] = round_up(bytes_) + reinterpret_cast<std::uintptr_t>(buffers[b].data) % 16;
      bytes_ = places_[b] + buffers[b].bytes();
      stretches_.push_back({places_[b], buffers[b].count, buffers[b].dtype, b});
    }
    bytes_ = round_up(bytes_);
  }

  /// Of a whole message, and of the bucket, which comes first in it.
  [[nodiscard]] std::size_t bytes() const noexcept { return bytes_; }
  [[nodiscard]] std::size_t bucket_bytes() const noexcept { return bucket_bytes_; }
  [[nodiscard]] std::span<const Stretch> stretches() const noexcept { return stretches_; }
  /// Where a buffer begins.
  [[nodiscard]] std::size_t place(std::size_t buffer) const noexcept { return places_[buffer]; }

  /// The tiles of the packed buffers, and the table that names them once they have an address on the device.
  [[nodiscard]] cuda::Table table(std::span<const BufferView> buffers, std::vector<cuda::Tile>& tiles) const {
    std::vector<cuda::Segment> segments;
    for (const std::size_t b : packed_)
      segments.push_back(
          {buffers[b].data, places_[b], buffers[b].count, 0, static_cast<std::uint32_t>(b), buffers[b].dtype});
    return cuda::add_table(segments, tiles);
  }

private:
  static constexpr std::size_t round_up(std::size_t bytes) noexcept {
    return (bytes + alignment - 1) / alignment * alignment;
  }

  std::vector<std::size_t> places_;
  std::vector<std::size_t> packed_;
  std::vector<Stretch> stretches_;
  std::size_t bytes_ = 0;
  std::size_t bucket_bytes_ = 0;
};

/// The packed buffers of a model as kernels see them: tiles in device memory.
class DeviceTable {
public:
  DeviceTable(const DeviceLayout& layout, std::span<const BufferView> buffers, cudaStream_t stream)
      : DeviceTable(layout, buffers, stream, {}) {}

  [[nodiscard]] const cuda::Table& operator*() const noexcept { return table_; }
  [[nodiscard]] std::size_t bytes() const noexcept { return memory_.bytes(); }
  void abandon() noexcept {
    source_.abandon();
    memory_.abandon();
  }

private:
  DeviceTable(const DeviceLayout& layout, std::span<const BufferView> buffers, cudaStream_t stream,
              std::vector<cuda::Tile> tiles)
      : table_(layout.table(buffers, tiles)) {
    if (tiles.empty()) return;
    const std::size_t bytes = tiles.size() * sizeof(cuda::Tile);
    source_ = cuda::PinnedMemory{bytes};
    std::memcpy(source_.data(), tiles.data(), bytes);
    memory_ = cuda::DeviceMemory{bytes};
    cuda::check(cudaMemcpyAsync(memory_.data(), source_.data(), bytes, cudaMemcpyHostToDevice, stream),
                "copy the list of buffers");
    table_.tiles = memory_.as<cuda::Tile>();
  }

  cuda::Table table_;
  cuda::PinnedMemory source_;
  cuda::DeviceMemory memory_;
};

/// What an operation on the device is about.
struct DeviceOperation {
  const Call& call;
  std::span<const BufferView> buffers;
  /// Whom this rank receives a header from, in ascending rank.
  std::span<const Rank> sources;
  bool check_finite;
};

/// @brief The memory of an averager on a device, and the frame of everything that it does there.
///
/// In device memory: a message of its own (the bucket of small buffers), room for those of all in-neighbours, headers.
template <StreamOrdered C>
class DeviceStaging {
public:
  using Stream = DeviceStream<C>;

  /// `slots` messages are received at most.
  DeviceStaging(C& communicator, std::span<const BufferView> buffers, std::size_t slots, std::size_t pack_below)
      : DeviceStaging(cuda::DeviceGuard{communicator.device()}, communicator, buffers, slots, pack_below) {}
  DeviceStaging(const DeviceStaging&) = delete;
  DeviceStaging& operator=(const DeviceStaging&) = delete;
  ~DeviceStaging() {
    if (engine_.quiesce()) return;
    table_.abandon();
    memory_.abandon();
    headers_.abandon();
    words_.abandon();
    report_.abandon();
  }

  /// Smaller buffers are packed. Not measured: a copy of 1 MiB costs about a microsecond on a GPU of 2 TB/s, and to
  /// enqueue a message costs the host as much.
  static constexpr std::size_t default_pack_below = std::size_t{1} << 20;

  [[nodiscard]] std::size_t bytes() const noexcept {
    return memory_.bytes() + headers_.bytes() + words_.bytes() + table_.bytes() + sizeof(cuda::RoundReport);
  }
  [[nodiscard]] const DeviceLayout& layout() const noexcept { return layout_; }
  /// How many messages there is room for.
  [[nodiscard]] std::size_t slots() const noexcept { return slots_; }
  [[nodiscard]] const cuda::Table& table() const noexcept { return aside_ != nullptr ? **aside_ : *table_; }
  [[nodiscard]] auto& engine() noexcept { return engine_; }
  /// To be called before another stream than Kith's is given something that reads table().
  void order_behind_table(Stream stream) const {
    cuda::check(cudaStreamWaitEvent(stream, copied_.get(), 0), "let a stream wait for an event");
  }

  /// The bucket, and where the message of in-neighbour k is received.
  [[nodiscard]] std::byte* bucket() const noexcept { return memory_.data(); }
  [[nodiscard]] std::byte* slot(std::size_t k) const noexcept { return memory_.data() + received_at(k); }
  [[nodiscard]] cuda::RoundHeader* sent_header() const noexcept { return headers_.as<cuda::RoundHeader>(); }
  [[nodiscard]] cuda::RoundHeader* received_header(std::size_t k) const noexcept { return sent_header() + 1 + k; }
  [[nodiscard]] const std::uint32_t* go() const noexcept { return words_.as<std::uint32_t>(sizeof(std::uint64_t)); }

  /// Where a stretch of the message is sent from.
  [[nodiscard]] const void* origin(const DeviceLayout::Stretch& stretch, std::span<const BufferView> buffers) const {
    return stretch.buffer == DeviceLayout::in_bucket ? bucket() + stretch.offset : buffers[stretch.buffer].data;
  }

  /// For operations of a single step.
  struct NoMore {
    void operator()(const cuda::RoundState&, const cuda::RoundHeader&) const noexcept {}
  };

  /// Whether what `stream` is given is recorded, not done.
  [[nodiscard]] static bool capturing(Stream stream) {
    cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
    cuda::check(cudaStreamIsCapturing(stream, &status), "tell whether a graph is captured");
    return status != cudaStreamCaptureStatusNone;
  }

  /// @brief Enqueues an operation behind what `stream` holds, and what `stream` is given from now on behind it:
  /// `exchange()` makes the messages, one group; `commit()` enqueues what writes parameters, if `*go()` says so.
  /// `more(state, header)` enqueues further steps behind the first group, before it is decided.
  template <class Exchange, class Commit, class More = NoMore>
  void perform(const DeviceOperation& operation, Stream stream, const Exchange& exchange, const Commit& commit,
               const More& more = {}) {
    perform_prepared(
        operation, stream, [&](std::uint64_t* finding) { prepare(operation, finding, engine_.stream()); }, exchange,
        commit, more);
  }

  /// The same with `prepare(finding)`, which enqueues what the messages are made by, and looks for what is not finite:
  /// `finding` is null where nobody asked for that, and no_finding at first.
  template <class Prepare, class Exchange, class Commit, class More = NoMore>
  void perform_prepared(const DeviceOperation& operation, Stream stream, const Prepare& prepare,
                        const Exchange& exchange, const Commit& commit, const More& more = {}) {
    const cuda::Range range{"kith: round"};
    engine_.watch().require_in_step();
    engine_.enqueue(operation.call, [&] {
      cudaStream_t own = engine_.stream();
      const cuda::RoundState state = state_of(operation, capturing(stream));
      cuda::order(entry_, stream, own);
      {
        const cuda::Range part{"kith: pack"};
        auto* const finding = const_cast<std::uint64_t*>(state.finding);
        if (finding != nullptr) cuda::check(cudaMemsetAsync(finding, 0xff, sizeof *finding, own), "clear a word");
        prepare(finding);
      }
      const cuda::RoundHeader header = engine_.header(operation.call, operation.call.bytes);
      cuda::check(cuda::begin_round(state, header, own), "begin a round");
      {
        const cuda::Range part{"kith: exchange"};
        engine_.group(operation.call, exchange);
        more(state, header);
      }
      const cuda::Range part{"kith: commit"};
      cuda::check(cuda::settle_round(state, header, own), "settle a round");
      commit();
      if (aside_ == nullptr) cuda::order(exit_, own, stream);
    });
  }

  /// As long as there is one, operations are about a copy of the model, whose small buffers a table of its own names,
  /// and the caller's stream does not wait for them.
  class Aside {
  public:
    Aside(DeviceStaging& staging, const DeviceTable& table) noexcept : staging_(staging) { staging_.aside_ = &table; }
    Aside(const Aside&) = delete;
    Aside& operator=(const Aside&) = delete;
    ~Aside() { staging_.aside_ = nullptr; }

  private:
    DeviceStaging& staging_;
  };

  /// Whether there is one.
  [[nodiscard]] bool aside() const noexcept { return aside_ != nullptr; }

  /// A value that was not finite, and kept a round from being committed.
  struct Refusal {
    NonFinite where;
    std::uint64_t sequence;
  };

  /// Brings those together that meet in `plan` for the first time: both ends wait, on the host.
  void meet(const Call& call, const Neighborhood& plan) {
    engine_.enqueue(call, [&] {
      engine_.group(call, [&] {
        for (const Rank to : plan.targets())
          if (!engine_.has_sent_to(to)) engine_.send(sent_header(), sizeof(cuda::RoundHeader), to);
        for (std::size_t k = 0; k < plan.sources().size(); ++k)
          if (const Rank from = plan.sources()[k].rank; !engine_.has_received_from(from))
            engine_.receive(received_header(k), sizeof(cuda::RoundHeader), from);
      });
    });
  }

  /// The call, with more time where ranks have never met: they connect first, which can take NCCL seconds.
  [[nodiscard]] Call with_patience(Call call, const Neighborhood& plan) const {
    bool new_peer = false;
    for (const Rank to : plan.targets()) new_peer = new_peer || !engine_.has_sent_to(to);
    for (const auto& source : plan.sources()) new_peer = new_peer || !engine_.has_received_from(source.rank);
    if (new_peer) call.deadline *= 4;
    return call;
  }

  /// What a round that has been settled meanwhile has to report, once. Of several, the first.
  [[nodiscard]] std::optional<Refusal> verdict() {
    cuda::RoundReport& report = report_.host();
    if (std::atomic_ref{report.reason}.load(std::memory_order_acquire) == cuda::RoundReport::none) return std::nullopt;
    constexpr std::uint64_t index = (std::uint64_t{1} << cuda::finding_index_bits) - 1;
    const Refusal refusal{
        {static_cast<Rank>(report.rank), static_cast<std::size_t>(report.theirs >> cuda::finding_index_bits),
         static_cast<std::size_t>(report.theirs & index)},
        report.sequence};
    std::atomic_ref{report.reason}.store(cuda::RoundReport::none, std::memory_order_release);
    return refusal;
  }

  /// The buffers have moved. Waits for rounds in flight if some of them are packed.
  void rebind(std::span<const BufferView> buffers, const Call& call) {
    if (layout_.bucket_bytes() == 0) return;
    const cuda::DeviceGuard guard{engine_.device()};
    engine_.drain(call);
    table_ = DeviceTable{layout_, buffers, engine_.stream()};
    cuda::check(cudaEventRecord(copied_.get(), engine_.stream()), "record an event");
  }

private:
  using Engine = std::remove_reference_t<decltype(std::declval<C&>().engine())>;

  DeviceStaging(const cuda::DeviceGuard&, C& communicator, std::span<const BufferView> buffers, std::size_t slots,
                std::size_t pack_below)
      : engine_(communicator.engine()),
        layout_(buffers, pack_below > 0 ? pack_below : default_pack_below),
        slots_(slots),
        table_(layout_, buffers, engine_.stream()),
        memory_(received_at(slots)),
        headers_((1 + std::max(slots, 2 * static_cast<std::size_t>(engine_.size()))) * sizeof(cuda::RoundHeader)),
        words_(2 * sizeof(std::uint64_t)) {
    cuda::check(cudaEventRecord(copied_.get(), engine_.stream()), "record an event");
    // Between the buffers of a bucket are gaps, which nobody writes; sums go over them.
    if (layout_.bucket_bytes() > 0)
      cuda::check(cudaMemsetAsync(bucket(), 0, layout_.bucket_bytes(), engine_.stream()), "clear the bucket");
  }

  [[nodiscard]] std::size_t received_at(std::size_t k) const noexcept {
    const std::size_t bucket = (layout_.bucket_bytes() + DeviceLayout::alignment - 1) / DeviceLayout::alignment;
    return bucket * DeviceLayout::alignment + k * layout_.bytes();
  }

  [[nodiscard]] cuda::RoundState state_of(const DeviceOperation& operation, bool captured) {
    cuda::RoundState state{};
    state.sent = sent_header();
    state.received = received_header(0);
    state.sources = static_cast<std::uint32_t>(operation.sources.size());
    state.go = words_.as<std::uint32_t>(sizeof(std::uint64_t));
    state.finding = operation.check_finite ? words_.as<std::uint64_t>() : nullptr;
    state.signals = engine_.watch().signals_on_device();
    state.report = report_.on_device();
    if (!captured) state.ticket = engine_.watch().add(operation.call, operation.sources);
    return state;
  }

  // Packs the small buffers, and looks for what is not finite if asked to.
  void prepare(const DeviceOperation& operation, std::uint64_t* finding, cudaStream_t own) {
    if (finding != nullptr) {
      for (const DeviceLayout::Stretch& stretch : layout_.stretches())
        if (stretch.buffer != DeviceLayout::in_bucket)
          cuda::check(cuda::find_non_finite(stretch.dtype, operation.buffers[stretch.buffer].data, stretch.count,
                                            static_cast<std::uint32_t>(stretch.buffer), finding, own),
                      "look for values that are not finite");
    }
    if (layout_.bucket_bytes() > 0) cuda::check(cuda::pack(table(), bucket(), finding, own), "pack small buffers");
  }

  Engine& engine_;
  DeviceLayout layout_;
  std::size_t slots_;
  DeviceTable table_;
  const DeviceTable* aside_ = nullptr;
  cuda::DeviceMemory memory_;
  cuda::DeviceMemory headers_;
  cuda::DeviceMemory words_;
  cuda::Pinned<cuda::RoundReport> report_;
  cuda::Event copied_;  // the table is on the device
  cuda::Event entry_;
  cuda::Event exit_;
};

}  // namespace kith::detail
