#include "cpu/conv_walk.h"
#include "cpu/memory.h"
#include "cpu/tasks.h"

#define SNIPKERN_KERNEL "cpu/conv_weight_grad.kernel.h"
#include "cpu/foreach_tier.h"
