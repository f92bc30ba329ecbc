// SPDX-License-Identifier: Apache-2.0
// What each kernel does where there is no GPU: for the emulator, every thread of every block runs the kernel's own
// code, one after the other, on the host. Linking this file binds them all.
#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

#include <gpu_emulator/emulator.hpp>
#include <kith/cuda/kernels.hpp>
#include <kith/cuda/round.hpp>

namespace {

using kith::DType;
using kith::cuda::Tile;
using kith::gpu_emulator::KernelBody;
using kith::gpu_emulator::Range;
using kith::gpu_emulator::Translate;
namespace detail = kith::cuda::detail;

template <class T>
void translate_pointer(T*& pointer, Translate translate) {
  if (pointer != nullptr) pointer = static_cast<T*>(translate(pointer));
}

/// Makes work's addresses the host's; `tiles` holds its table then.
void translate_work(detail::Work& work, unsigned blocks, std::vector<Tile>& tiles, Translate translate) {
  translate_pointer(work.values, translate);
  if (work.tiles == nullptr) return;
  translate_pointer(work.tiles, translate);
  tiles.assign(work.tiles, work.tiles + blocks);
  for (Tile& tile : tiles) translate_pointer(tile.values, translate);
  work.tiles = tiles.data();
}

template <class F>
void for_each_thread(dim3 grid, const F& f) {
  for (unsigned block = 0; block < grid.x; ++block)
    for (unsigned thread = 0; thread < detail::block_threads; ++thread) f(block, thread);
}

/// A kernel with one argument.
template <class Arguments>
void bind(void (*kernel)(Arguments), auto accesses, auto run) {
  KernelBody body;
  body.argument_bytes = {sizeof(Arguments)};
  body.accesses = [accesses](void** arguments, dim3 grid, dim3, std::vector<Range>& reads, std::vector<Range>& writes) {
    accesses(*static_cast<const Arguments*>(arguments[0]), grid, reads, writes);
  };
  body.run = [run](void** arguments, dim3 grid, dim3, Translate translate) {
    run(*static_cast<const Arguments*>(arguments[0]), grid, translate);
  };
  kith::gpu_emulator::bind(reinterpret_cast<const void*>(kernel), std::move(body));
}

/// The tensors behind a table are not among them: the table may be on its way when a kernel is launched.
void add_work(const detail::Work& work, std::vector<Range>& ranges) {
  if (work.tiles == nullptr) ranges.push_back({work.values, work.count * work.width});
}
void add_table(const detail::Work& work, dim3 grid, std::vector<Range>& reads) {
  if (work.tiles != nullptr) reads.push_back({work.tiles, grid.x * sizeof(Tile)});
}
void add_go(const std::uint32_t* go, std::vector<Range>& reads) {
  if (go != nullptr) reads.push_back({go, sizeof *go});
}

template <DType D, unsigned K, unsigned Capacity, bool Shadowed>
void bind_average() {
  using Arguments = detail::Average<D, Capacity>;
  bind(
      detail::average_kernel<D, K, Capacity, Shadowed>,
      [](const Arguments& a, dim3 grid, std::vector<Range>& reads, std::vector<Range>& writes) {
        add_go(a.go, reads);
        add_table(a.work, grid, reads);
        add_work(a.work, reads);
        add_work(a.work, writes);
        for (unsigned k = 0; k < a.sources; ++k) reads.push_back({a.values[k], a.work.bucket_bytes});
        if (Shadowed) writes.push_back({a.shadow.values, a.work.count * 2});
      },
      [](Arguments a, dim3 grid, Translate translate) {
        std::vector<Tile> tiles;
        translate_work(a.work, grid.x, tiles, translate);
        translate_pointer(a.go, translate);
        translate_pointer(a.shadow.values, translate);
        for (unsigned k = 0; k < a.sources; ++k) translate_pointer(a.values[k], translate);
        for_each_thread(grid,
                        [&](unsigned block, unsigned thread) { detail::average_tile<K, Shadowed>(a, block, thread); });
      });
}

template <DType D, bool Shadowed = false>
void bind_averages() {
  bind_average<D, 1, 1, Shadowed>();
  bind_average<D, 2, 2, Shadowed>();
  bind_average<D, 3, 3, Shadowed>();
  bind_average<D, 0, 8, Shadowed>();
  bind_average<D, 0, kith::cuda::max_sources, Shadowed>();
}

template <DType D>
void bind_change() {
  bind(
      detail::change_kernel<D>,
      [](const detail::Change& a, dim3 grid, std::vector<Range>& reads, std::vector<Range>& writes) {
        add_go(a.go, reads);
        add_table(a.work, grid, reads);
        add_work(a.work, reads);
        add_work(a.work, writes);
        reads.push_back({a.after, a.work.bucket_bytes});
        reads.push_back({a.before, a.work.bucket_bytes});
      },
      [](detail::Change a, dim3 grid, Translate translate) {
        std::vector<Tile> tiles;
        translate_work(a.work, grid.x, tiles, translate);
        translate_pointer(a.after, translate);
        translate_pointer(a.before, translate);
        translate_pointer(a.go, translate);
        for_each_thread(grid, [&](unsigned block, unsigned thread) { detail::add_change<D>(a, block, thread); });
      });
}

template <bool Check>
void bind_copy() {
  bind(
      detail::copy_kernel<Check>,
      [](const detail::Copy& a, dim3 grid, std::vector<Range>& reads, std::vector<Range>& writes) {
        add_go(a.go, reads);
        add_table(a.work, grid, reads);
        const bool into_work = a.bucket != nullptr && !a.to_bucket;
        add_work(a.work, into_work ? writes : reads);
        if (a.bucket != nullptr) (into_work ? reads : writes).push_back({a.bucket, a.work.bucket_bytes});
        if (Check) writes.push_back({a.first, sizeof *a.first});
      },
      [](detail::Copy a, dim3 grid, Translate translate) {
        std::vector<Tile> tiles;
        translate_work(a.work, grid.x, tiles, translate);
        translate_pointer(a.bucket, translate);
        translate_pointer(a.go, translate);
        translate_pointer(a.first, translate);
        for_each_thread(grid, [&](unsigned block, unsigned thread) { detail::copy_tile<Check>(a, block, thread); });
      });
}

/// detail::block_sum() of the threads' values.
template <class T, class F>
T block_sum(const F& of_thread) {
  T sums[detail::block_threads];
  for (unsigned thread = 0; thread < detail::block_threads; ++thread) sums[thread] = of_thread(thread);
  for (unsigned half = detail::block_threads / 2; half > 0; half /= 2)
    for (unsigned thread = 0; thread < half; ++thread) sums[thread] += sums[thread + half];
  return sums[0];
}

template <DType D>
void bind_distance() {
  using Arguments = detail::Distance<D>;
  bind(
      detail::distance_kernel<D>,
      [](const Arguments& d, dim3 grid, std::vector<Range>& reads, std::vector<Range>& writes) {
        reads.push_back({d.a, d.count * sizeof *d.a});
        reads.push_back({d.b, d.count * sizeof *d.b});
        writes.push_back({d.partials, grid.x * sizeof(double)});
      },
      [](Arguments d, dim3 grid, Translate translate) {
        translate_pointer(d.a, translate);
        translate_pointer(d.b, translate);
        translate_pointer(d.partials, translate);
        for (unsigned block = 0; block < grid.x; ++block)
          d.partials[block] +=
              block_sum<double>([&](unsigned thread) { return detail::distance_of_thread(d, block, thread); });
      });
}

void bind_digest() {
  bind(
      detail::digest_kernel<detail::Digest>,
      [](const detail::Digest& d, dim3, std::vector<Range>& reads, std::vector<Range>& writes) {
        reads.push_back({d.values, d.count * sizeof *d.values});
        writes.push_back({d.sum, sizeof *d.sum});
      },
      [](detail::Digest d, dim3 grid, Translate translate) {
        translate_pointer(d.values, translate);
        translate_pointer(d.sum, translate);
        for (unsigned block = 0; block < grid.x; ++block)
          *d.sum +=
              block_sum<std::uint64_t>([&](unsigned thread) { return detail::digest_of_thread(d, block, thread); });
      });
}

const bool bound = [] {
  if (!kith::gpu_emulator::available()) return false;
  bind_averages<DType::f32>();
  bind_averages<DType::f64>();
  bind_averages<DType::f16>();
  bind_averages<DType::bf16>();
  bind_averages<DType::f32, true>();
  bind_change<DType::f32>();
  bind_change<DType::f64>();
  bind_change<DType::f16>();
  bind_change<DType::bf16>();
  bind_copy<false>();
  bind_copy<true>();
  bind_distance<DType::f32>();
  bind_distance<DType::f64>();
  bind_distance<DType::f16>();
  bind_distance<DType::bf16>();
  bind_digest();
  return true;
}();

}  // namespace
