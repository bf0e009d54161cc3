// Large arrays that are used again instead of being returned to the system: the pages of a fresh one cost more than
// filling it. Not cleared: a caller writes every word before it reads any.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/vector.h>

#include <cstdint>
#include <map>
#include <mutex>
#include <new>
#include <stdexcept>
#include <vector>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "module.h"

namespace nb = nanobind;

namespace {

constexpr std::size_t kPage = std::size_t{2} << 20;  // aligned for huge pages
std::mutex g_mutex;
std::multimap<std::size_t, void*> g_free;
std::size_t g_held = 0, g_limit = std::size_t{1} << 30;

void release(void* p, std::size_t size) {
    std::lock_guard lock(g_mutex);
    if (g_held + size > g_limit) {
        ::operator delete(p, std::align_val_t(kPage));
    } else {
        g_free.emplace(size, p);
        g_held += size;
    }
}

void* acquire(std::size_t size) {
    {
        std::lock_guard lock(g_mutex);
        const auto found = g_free.find(size);
        if (found != g_free.end()) {
            void* p = found->second;
            g_free.erase(found);
            g_held -= size;
            return p;
        }
    }
    void* p = ::operator new(size, std::align_val_t(kPage));
#if defined(__linux__)
    madvise(p, size, MADV_HUGEPAGE);
#endif
    return p;
}

struct Block {
    void* p;
    std::size_t size;
};

nb::ndarray<nb::numpy, std::uint64_t> recycled(const std::vector<std::size_t>& shape) {
    std::size_t words = 1;
    for (std::size_t n : shape) {
        if (n && words > (std::size_t{1} << 40) / n) throw std::invalid_argument("an array of this shape is too large");
        words *= n;
    }
    const std::size_t size = (words * 8 + kPage - 1) / kPage * kPage + (words ? 0 : kPage);
    auto* block = new Block{acquire(size), size};
    nb::capsule owner(block, [](void* b) noexcept {
        auto* held = static_cast<Block*>(b);
        release(held->p, held->size);
        delete held;
    });
    return nb::ndarray<nb::numpy, std::uint64_t>(block->p, shape.size(), shape.data(), owner);
}

std::size_t keep_recycled(std::size_t bytes) {
    std::lock_guard lock(g_mutex);
    const std::size_t before = g_limit;
    g_limit = bytes;
    while (g_held > g_limit) {
        const auto largest = std::prev(g_free.end());
        ::operator delete(largest->second, std::align_val_t(kPage));
        g_held -= largest->first;
        g_free.erase(largest);
    }
    return before;
}

}  // namespace

void register_recycle(nb::module_& m) {
    m.def("recycled_words", &recycled, nb::arg("shape"), "An uninitialised array whose memory is used again later.");
    m.def("keep_recycled", &keep_recycled, nb::arg("bytes"), "How much unused memory is kept; returns the old limit.");
}
