// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <kith/types.hpp>

namespace kith::detail {

/// The dtype that a buffer's values are computed in: f64 for f64, f32 for all others.
[[nodiscard]] constexpr DType compute_dtype(DType dtype) noexcept {
  return dtype == DType::f64 ? DType::f64 : DType::f32;
}

/// Calls f.operator()<float>() or f.operator()<double>(): the type that a dtype is computed in.
template <class F>
void with_compute_type(DType dtype, const F& f) {
  if (compute_dtype(dtype) == DType::f64)
    f.template operator()<double>();
  else
    f.template operator()<float>();
}

}  // namespace kith::detail
