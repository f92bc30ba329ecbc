// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <kith/view.hpp>

namespace bench {

/// @brief The least that averaging in place can cost: one pass over a buffer that reads and writes each byte once.
///
/// x = c * x for f32 and f64, with c = 2 and c = 1/2 in turn: exact, and no value ever leaves its range. For f16 and
/// bf16 a pass over as many bytes that flips the last bit of each element, since arithmetic would add a conversion.
/// `turn` counts the passes.
void touch_once(const kith::BufferView& model, unsigned turn) noexcept;

}  // namespace bench
