// SPDX-License-Identifier: Apache-2.0
#include <kith/exchange/wire_layout.hpp>

#include <cstddef>
#include <vector>

#include <kith/codec/int8_block.hpp>
#include <kith/codec/min_max_uint8.hpp>
#include <kith/exchange/direct.hpp>

#include <doctest/doctest.h>

namespace exchange_wire_layout_test {

using kith::detail::Segment;
using kith::detail::WireLayout;

TEST_CASE("wire layout: where buffers stand in a message") {
  const std::vector<kith::BufferView> buffers = {{nullptr, 10, kith::DType::f32},
                                                 {nullptr, 1000, kith::DType::bf16},
                                                 {nullptr, 0, kith::DType::f64},
                                                 {nullptr, 600, kith::DType::f64}};
  const WireLayout layout{kith::Direct{kith::Int8Block{.block = 100}}, buffers, 41};
  CHECK(layout.part(0).offset == 0);
  CHECK(layout.part(0).bytes == 40);
  CHECK_FALSE(layout.part(0).encoded);
  CHECK(layout.part(1).offset == 40);
  CHECK(layout.part(1).bytes == 1000 + 10 * 4);  // its scales are f32, as what is encoded
  CHECK(layout.part(1).encoded);
  CHECK(layout.part(2).bytes == 0);
  CHECK_FALSE(layout.part(2).encoded);
  CHECK(layout.part(3).bytes == 600 + 6 * 8);
  CHECK(layout.bytes() == 40 + 1040 + 648);
  CHECK(layout.longest_computed() == 4800);
  CHECK(layout.longest_encoded() == 1040);
}

TEST_CASE("wire layout: segments are whole blocks, and follow each other without gaps") {
  const std::vector<kith::BufferView> buffers = {{nullptr, 20000, kith::DType::f32},
                                                 {nullptr, 0, kith::DType::f32},
                                                 {nullptr, 30, kith::DType::bf16},
                                                 {nullptr, 16300, kith::DType::f16},
                                                 {nullptr, 8100, kith::DType::f64}};
  const auto check = [&](const auto& codec, std::size_t elements, std::size_t segments) {
    CAPTURE(elements);
    const kith::Direct exchange{codec};
    const WireLayout layout{exchange, buffers, 1000};
    CHECK(layout.segments() == segments);
    std::size_t buffer = 0;
    std::size_t first = 0;
    std::size_t offset = 0;
    for (std::size_t s = 0; s < layout.segments(); ++s) {
      const Segment segment = layout.segment(s);
      if (segment.buffer != buffer) {
        CHECK(first == buffers[buffer].count);
        CHECK(offset == layout.part(segment.buffer).offset);
        first = 0;
        for (++buffer; buffers[buffer].count == 0;) ++buffer;
      }
      CHECK(segment.buffer == buffer);
      CHECK(segment.first == first);
      CHECK(segment.offset == offset);
      CHECK(segment.encoded == (buffer != 2));
      CHECK(segment.count > 0);
      if (buffer != 2) {
        CHECK(segment.bytes == exchange.wire_bytes(segment.count, buffers[buffer].dtype));
        CHECK((elements == 0 ? segment.count == buffers[buffer].count : segment.count <= elements));
      }
      first += segment.count;
      offset += segment.bytes;
    }
    CHECK(offset == layout.bytes());
    CHECK(first == 8100);
    std::size_t whole = 60;
    for (const std::size_t b : {0U, 3U, 4U}) whole += exchange.wire_bytes(buffers[b].count, buffers[b].dtype);
    CHECK(layout.bytes() == whole);
  };
  check(kith::Int8Block{.block = 256}, 8192, 3 + 1 + 2 + 1);
  check(kith::Int8Block{.block = 100}, 8100, 3 + 1 + 3 + 1);
  check(kith::Int8Block{.block = 9000}, 9000, 3 + 1 + 2 + 1);  // of one block
  check(kith::MinMaxUInt8{.chunk = 33}, 8184, 3 + 1 + 2 + 1);
  check(kith::MinMaxUInt8{}, 0, 4);
}

}  // namespace exchange_wire_layout_test
