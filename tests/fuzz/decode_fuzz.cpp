// SPDX-License-Identifier: Apache-2.0
// A libFuzzer target for one decoder: KITH_FUZZ_HEADER is its header, KITH_FUZZ_CODEC an expression for the codec.
//
// The input is a dtype, a count of two bytes, then the wire. Whatever the wire, decode() and decode_add() either refuse
// it, both of them and without writing, or give finite values; and what they accept has the right length. With
// --write-corpus FOLDER (see the end) the program writes encoded values to start from, instead of fuzzing.
#include KITH_FUZZ_HEADER

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <span>
#include <string>
#include <vector>

#include <kith/error.hpp>
#include <kith/numeric/kernels.hpp>
#include <kith/types.hpp>
#include <kith/view.hpp>

namespace {

constexpr auto codec = KITH_FUZZ_CODEC;
constexpr kith::DType dtypes[] = {kith::DType::f32, kith::DType::f64, kith::DType::f16, kith::DType::bf16};
constexpr std::size_t header_bytes = 3;
constexpr std::size_t guard_bytes = 16;

void require(bool condition, const char* what) {
  if (condition) return;
  std::fprintf(stderr, "decode_fuzz: %s\n", what);
  std::abort();
}

// Memory for the decoded values, and guards. Small integers of no special meaning in any dtype: all finite.
std::vector<std::byte> target(std::size_t bytes) {
  return std::vector<std::byte>(bytes + 2 * guard_bytes, std::byte{0x35});
}
kith::BufferView values(std::vector<std::byte>& memory, std::size_t count, kith::DType dtype) {
  return kith::view(static_cast<void*>(memory.data() + guard_bytes), count, dtype);
}

template <class Decode>
bool accepted(const kith::BufferView& view, std::vector<std::byte>& memory, const Decode& decode) {
  const std::vector<std::byte> before = memory;
  try {
    decode(view);
  } catch (const kith::WireError&) {
    require(memory == before, "a refused wire has been written from");
    return false;
  }
  require(std::equal(memory.begin(), memory.begin() + guard_bytes, before.begin()) &&
              std::equal(memory.end() - guard_bytes, memory.end(), before.end() - guard_bytes),
          "written beyond the buffer");
  return true;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size < header_bytes) return 0;
  const kith::DType dtype = dtypes[data[0] % 4];
  const std::size_t count = (data[1] + std::size_t{256} * data[2]) % 5000;
  const std::vector<std::byte> wire(reinterpret_cast<const std::byte*>(data) + header_bytes,
                                    reinterpret_cast<const std::byte*>(data) + size);
  const kith::CodecContext context{1, 2, 3};

  std::vector<std::byte> decoded = target(count * kith::size_of(dtype));
  const kith::BufferView view = values(decoded, count, dtype);
  const bool good = accepted(view, decoded, [&](kith::BufferView v) { codec.decode(wire, v, context); });
  const bool checked = accepted(view, decoded, [&](kith::BufferView v) { codec.check(wire, v.count, v.dtype); });
  require(good == checked, "decode and check disagree");
  if (good) {
    require(wire.size() == codec.wire_bytes(count, dtype), "a wire of the wrong length has been accepted");
    require(kith::detail::first_non_finite(dtype, view.data, count) == count, "decoded a value that is not finite");
  }

  std::vector<std::byte> sums = target(count * kith::size_of(dtype));
  const kith::BufferView accumulator = values(sums, count, dtype);
  const bool added = accepted(accumulator, sums, [&](kith::BufferView v) { codec.decode_add(0.5, wire, v, context); });
  require(good == added, "decode and decode_add disagree");

  // What was decoded can be encoded again, and that can be decoded.
  if (good) {
    std::vector<std::byte> again(codec.wire_bytes(count, dtype));
    codec.encode(view, again, context);
    codec.decode(again, view, context);
  }
  return 0;
}

// Starting points for the fuzzer: some values of each dtype, encoded.
extern "C" int LLVMFuzzerInitialize(int* argc, char*** argv) {
  if (*argc != 3 || std::strcmp((*argv)[1], "--write-corpus") != 0) return 0;
  constexpr std::size_t count = 45;
  for (unsigned d = 0; d < 4; ++d) {
    std::vector<std::byte> memory(count * kith::size_of(dtypes[d]));
    const kith::BufferView view{memory.data(), count, dtypes[d]};
    for (std::size_t i = 0; i < count; ++i) {
      const float x = std::ldexp(static_cast<float>(i % 9) - 3.5F, static_cast<int>(i % 5) - 2);
      const auto wide = static_cast<double>(x);
      if (dtypes[d] == kith::DType::f64) std::memcpy(memory.data() + 8 * i, &wide, 8);
      if (dtypes[d] == kith::DType::f32) std::memcpy(memory.data() + 4 * i, &x, 4);
      if (kith::size_of(dtypes[d]) == 2) kith::detail::narrow(dtypes[d], &x, memory.data() + 2 * i, 1);
    }
    std::vector<std::byte> wire(codec.wire_bytes(count, dtypes[d]));
    codec.encode(view, wire, {1, 2, 3});
    const auto name = std::string{(*argv)[2]} + "/" + std::string{kith::to_string(dtypes[d])};
    std::FILE* const file = std::fopen(name.c_str(), "wb");
    require(file != nullptr, "cannot write the corpus");
    const unsigned char header[header_bytes] = {static_cast<unsigned char>(d), static_cast<unsigned char>(count), 0};
    std::fwrite(header, 1, header_bytes, file);
    std::fwrite(wire.data(), 1, wire.size(), file);
    std::fclose(file);
  }
  std::exit(0);
}
