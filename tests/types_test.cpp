// SPDX-License-Identifier: Apache-2.0
#include <kith/types.hpp>

#include <chrono>
#include <cstdint>
#include <string>
#include <type_traits>

#include <doctest/doctest.h>

namespace {
struct FrameworkHalf {  // what a framework calls its own 16-bit type
  unsigned short bits;
};
struct WrongWidth {
  std::uint32_t bits;
};
}  // namespace

template <>
struct kith::ElementTraits<FrameworkHalf> {
  static constexpr kith::DType dtype = kith::DType::f16;
};
template <>
struct kith::ElementTraits<WrongWidth> {
  static constexpr kith::DType dtype = kith::DType::f16;
};

static_assert(std::is_same_v<kith::Rank, std::int32_t> && std::is_same_v<kith::Round, std::uint64_t>);
static_assert(sizeof(kith::bfloat16) == 2 && sizeof(kith::float16) == 2);
static_assert(std::is_trivially_copyable_v<kith::bfloat16> && std::is_trivially_copyable_v<kith::float16>);
static_assert(kith::dtype_of<float> == kith::DType::f32 && kith::dtype_of<double> == kith::DType::f64);
static_assert(kith::dtype_of<kith::float16> == kith::DType::f16 && kith::dtype_of<kith::bfloat16> == kith::DType::bf16);
static_assert(kith::Element<FrameworkHalf> && kith::dtype_of<FrameworkHalf> == kith::DType::f16);
static_assert(!kith::Element<WrongWidth> && !kith::Element<int> && !kith::Element<std::uint16_t>);

TEST_CASE("types: widths and names of the element types") {
  CHECK(kith::size_of(kith::DType::f32) == 4);
  CHECK(kith::size_of(kith::DType::f64) == 8);
  CHECK(kith::size_of(kith::DType::f16) == 2);
  CHECK(kith::size_of(kith::DType::bf16) == 2);
  CHECK(std::string{kith::to_string(kith::DType::f32)} == "f32");
  CHECK(std::string{kith::to_string(kith::DType::f64)} == "f64");
  CHECK(std::string{kith::to_string(kith::DType::f16)} == "f16");
  CHECK(std::string{kith::to_string(kith::DType::bf16)} == "bf16");
}

TEST_CASE("types: a dtype that is none has no width and says so") {
  const auto none = static_cast<kith::DType>(9);
  CHECK(kith::size_of(none) == 0);
  CHECK(std::string{kith::to_string(none)}.find("unknown") != std::string::npos);
}

TEST_CASE("types: every chrono duration is a number of seconds") {
  using namespace std::chrono_literals;
  CHECK(kith::Seconds{250ms}.count() == 0.25);
  CHECK(kith::Seconds{2min}.count() == 120);
}

TEST_CASE("types: storage types compare by their bits") {
  CHECK(kith::bfloat16{0x3f80} == kith::bfloat16{0x3f80});
  CHECK(kith::float16{0x0000} != kith::float16{0x8000});  // the two zeros: no arithmetic here
}
