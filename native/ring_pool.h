// Worker threads for batches of limbs: one pool per process, used by one caller at a time.
#pragma once

#include <cstddef>
#include <functional>

// Call work(i) for every i < tasks on up to `threads` threads, the caller's among them. A caller that finds the pool
// busy (the other party of a test runs in the same process) does all of its work itself.
void parallel_for(std::size_t tasks, int threads, const std::function<void(std::size_t)>& work);
