// Instruction-set tiers: every kernel is compiled once for each, and one is picked at run time.
#pragma once

namespace snipkern {

enum class Isa { kScalar = 0, kAvx2 = 1, kAvx512 = 2 };

// "scalar", "avx2", "avx512".
const char* isa_name(Isa isa);

// The best tier that this processor runs.
Isa best_isa();

// The tier in use: best_isa(), unless SNIPKERN_ISA or set_isa() asked for a lower one. Throws
// std::runtime_error when SNIPKERN_ISA names an unknown tier or one the processor lacks.
Isa current_isa();

// Switches the tier; returns false, changing nothing, for an unknown or unsupported name.
bool set_isa(const char* name);

}  // namespace snipkern
