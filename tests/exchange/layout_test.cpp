// SPDX-License-Identifier: Apache-2.0
#include <kith/exchange/layout.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <numeric>
#include <random>
#include <vector>

#include <doctest/doctest.h>

#include "../reference.hpp"

namespace exchange_layout_test {

using kith::BufferView;
using kith::DType;
using kith::detail::Layout;

namespace {

// Visits [begin, end) in cuts at multiples of the alignment and notes how often each element was visited.
void check_cuts(const std::vector<BufferView>& buffers, std::mt19937_64& random) {
  const Layout layout{buffers};
  std::vector<std::vector<int>> visits;
  std::vector<std::size_t> offset_of;  // where each buffer begins, as the pieces say
  for (const BufferView& buffer : buffers) visits.emplace_back(buffer.count, 0);
  offset_of.resize(buffers.size(), SIZE_MAX);
  std::size_t wrong_offsets = 0;
  for (std::size_t begin = 0; begin < layout.bytes();) {
    const std::size_t end = begin + 64 * (1 + random() % 9);  // the last one lies past the end
    layout.for_each(buffers, begin, end, [&](std::size_t b, std::size_t first, std::size_t count, std::size_t offset) {
      const std::size_t width = size_of(buffers[b].dtype);
      if (offset_of[b] == SIZE_MAX) offset_of[b] = offset - first * width;
      wrong_offsets += offset_of[b] != offset - first * width;
      wrong_offsets += offset < begin || offset + count * width > end;
      REQUIRE(first + count <= buffers[b].count);
      for (std::size_t i = first; i < first + count; ++i) ++visits[b][i];
    });
    begin = end;
  }
  CHECK(wrong_offsets == 0);
  for (std::size_t b = 0; b < buffers.size(); ++b) {
    CAPTURE(b);
    CHECK(std::all_of(visits[b].begin(), visits[b].end(), [](int times) { return times == 1; }));
    if (buffers[b].count == 0) continue;
    CHECK(offset_of[b] % Layout::alignment == 0);
    for (std::size_t c = 0; c < b; ++c)
      if (buffers[c].count > 0) CHECK(offset_of[c] + buffers[c].bytes() <= offset_of[b]);
  }
}

}  // namespace

TEST_CASE("layout: bytes with and without the gaps") {
  const std::vector<BufferView> buffers = {
      {nullptr, 3, DType::f32}, {nullptr, 0, DType::f64}, {nullptr, 32, DType::bf16}, {nullptr, 9, DType::f64}};
  const Layout layout{buffers};
  CHECK(layout.buffers() == 4);
  CHECK(layout.payload_bytes() == 12 + 0 + 64 + 72);
  CHECK(layout.bytes() == 64 + 0 + 64 + 128);
  CHECK(Layout{{}}.bytes() == 0);
  CHECK(Layout{{}}.buffers() == 0);
}

TEST_CASE("layout: nothing is visited in an empty range, past the end or without buffers") {
  const std::vector<BufferView> buffers = {{nullptr, 40, DType::f32}};
  const auto never = [](std::size_t, std::size_t, std::size_t, std::size_t) { FAIL("nothing is there"); };
  Layout{buffers}.for_each(buffers, 64, 64, never);
  Layout{buffers}.for_each(buffers, 192, 1024, never);
  Layout{{}}.for_each({}, 0, 1024, never);
  const std::vector<BufferView> empty = {{nullptr, 0, DType::f32}, {nullptr, 0, DType::f64}};
  Layout{empty}.for_each(empty, 0, 1024, never);
}

TEST_CASE("layout: however it is cut, each element is visited once, at its place") {
  const std::uint64_t seed = std::random_device{}();
  CAPTURE(seed);
  std::mt19937_64 random{seed};
  constexpr DType dtypes[] = {DType::f32, DType::f64, DType::f16, DType::bf16};
  for (int repeat = 0; repeat < 200; ++repeat) {
    std::vector<BufferView> buffers;
    for (std::size_t b = random() % 9; b > 0; --b)
      buffers.push_back({nullptr, random() % 4 == 0 ? 0 : random() % 300, dtypes[random() % 4]});
    check_cuts(buffers, random);
  }
}

TEST_CASE("layout: packing and unpacking move every buffer's bits") {
  const std::vector<reference::Shape> shapes = {
      {DType::f16, 5, 1}, {DType::f64, 0}, {DType::f32, 1000, 3}, {DType::f64, 17, 1}, {DType::bf16, 33}};
  std::vector<reference::Model> models = reference::random_models(2, shapes, 7);
  const auto from = models[0].views();
  const auto to = models[1].views();
  const Layout layout{from};
  std::vector<std::byte> flat(layout.bytes());
  kith::detail::pack(layout, from, 0, layout.bytes(), flat.data());
  kith::detail::unpack(layout, to, 0, layout.bytes(), flat.data());
  const bool same = models[0] == models[1];
  CHECK(same);

  // A part of the range: only what lies in it is touched.
  std::vector<reference::Model> others = reference::random_models(2, shapes, 8);
  const reference::Model before = others[1];
  const std::size_t begin = 64 + 640;  // inside the third buffer
  const std::size_t end = begin + 128;
  kith::detail::pack(layout, others[0].views(), begin, end, flat.data());
  kith::detail::unpack(layout, others[1].views(), begin, end, flat.data());
  std::size_t wrong = 0;
  for (std::size_t b = 0; b < shapes.size(); ++b)
    for (std::size_t i = 0; i < shapes[b].count; ++i) {
      const bool inside = b == 2 && i >= 160 && i < 192;
      wrong += others[1].get(b, i) != (inside ? others[0] : before).get(b, i);
    }
  CHECK(wrong == 0);
}

}  // namespace exchange_layout_test
