// SPDX-License-Identifier: Apache-2.0
#include <kith/numeric/compute_type.hpp>

#include <cstddef>

#include <doctest/doctest.h>

namespace numeric_compute_type_test {

using kith::DType;

TEST_CASE("compute type: f64 is computed in f64, all others in f32") {
  for (const DType dtype : {DType::f32, DType::f64, DType::f16, DType::bf16}) {
    const std::size_t expected = dtype == DType::f64 ? 8 : 4;
    CHECK(kith::size_of(kith::detail::compute_dtype(dtype)) == expected);
    std::size_t called_with = 0;
    kith::detail::with_compute_type(dtype, [&]<class T>() { called_with = sizeof(T); });
    CHECK(called_with == expected);
  }
}

}  // namespace numeric_compute_type_test
