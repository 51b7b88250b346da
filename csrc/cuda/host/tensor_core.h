// Matrix instructions of a warp with the fragment layouts of the PTX ISA. Products are summed in double and rounded
// once: no worse than the hardware, whose order and rounding within an instruction are not specified.
#pragma once

#include <cstdint>

#include "cuda/host/half.h"

namespace snipkern::cuda::host {

void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], __half);
void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], __nv_bfloat16);

// The low 13 bits of operands are ignored.
void mma_m16n8k8_tf32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]);

// `count` matrices of 8 x 8 16-bit elements: lane 8 i + r gives the address of row r of matrix i.
void ldmatrix(uint32_t* result, const void* row, int count, bool transposed);

// Rounds to nearest, ties away from zero, to 10 bits of fraction.
uint32_t to_tf32(float value);

}  // namespace snipkern::cuda::host
