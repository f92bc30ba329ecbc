// SPDX-License-Identifier: Apache-2.0
#include <kith/view.hpp>

#include <array>
#include <span>
#include <vector>

#include <doctest/doctest.h>

namespace view_test {

namespace {
template <class R>
concept Viewable = requires(R&& range) {
  kith::view(static_cast<R&&>(range));
};
}  // namespace

static_assert(Viewable<std::vector<float>&> && Viewable<std::span<double>> && Viewable<std::array<kith::float16, 3>&>);
static_assert(!Viewable<std::vector<float>>, "a view of a temporary vector would dangle");
static_assert(!Viewable<const std::vector<float>&> && !Viewable<std::span<const float>>, "parameters are written");
static_assert(!Viewable<std::vector<int>&> && !Viewable<std::vector<bool>&>, "no dtype, or no memory to point to");

TEST_CASE("view: of a vector, span and array") {
  std::vector<kith::bfloat16> values(7);
  const kith::BufferView of_vector = kith::view(values);
  CHECK(of_vector.data == values.data());
  CHECK(of_vector.count == 7);
  CHECK(of_vector.dtype == kith::DType::bf16);
  CHECK(of_vector.bytes() == 14);

  std::vector<double> doubles(5);
  const kith::BufferView of_part = kith::view(std::span{doubles}.subspan(2));
  CHECK(of_part.data == doubles.data() + 2);
  CHECK(of_part.count == 3);
  CHECK(of_part.bytes() == 24);

  std::array<float, 4> four{};
  CHECK(kith::view(four).count == 4);
  CHECK(kith::view(four).dtype == kith::DType::f32);
}

TEST_CASE("view: of a pointer, with its type or with a dtype that is known at run time") {
  float values[3] = {};
  const kith::BufferView typed = kith::view(values + 1, 2);
  CHECK(typed.data == values + 1);
  CHECK(typed.count == 2);
  CHECK(typed.dtype == kith::DType::f32);
  void* memory = values;
  const kith::BufferView untyped = kith::view(memory, 6, kith::DType::f16);
  CHECK(untyped.data == memory);
  CHECK(untyped.count == 6);
  CHECK(untyped.dtype == kith::DType::f16);
  CHECK(untyped.bytes() == 12);
}

TEST_CASE("view: of nothing") {
  std::vector<float> none;
  CHECK(kith::view(none).bytes() == 0);
  CHECK(kith::BufferView{}.bytes() == 0);
}

}  // namespace view_test
