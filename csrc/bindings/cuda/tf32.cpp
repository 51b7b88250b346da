#include "bindings/cuda/tf32.h"

extern "C" int snipkern_allow_tf32(int allow) { return snipkern::cuda::tf32_permission().exchange(allow != 0) ? 1 : 0; }
