#include "cpu/conv_walk.h"
#include "cpu/memory.h"
#include "cpu/tasks.h"

#define SNIPKERN_KERNEL "cpu/conv_sum.kernel.h"
#include "cpu/foreach_tier.h"
