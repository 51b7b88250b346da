// cp.async as late as the hardware may do it: the target is NaN from the copy's start until the wait, when the source
// is read.
#pragma once

#include <cstddef>

namespace snipkern::cuda::host {

void copy_async(void* shared, const void* global, int size, int bytes);
void copy_async_commit();
void copy_async_wait(size_t groups_left);

}  // namespace snipkern::cuda::host
