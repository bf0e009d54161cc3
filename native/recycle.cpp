// Large arrays that are used again instead of being returned to the system: the pages of a fresh one cost more than
// filling it. Not cleared: a caller writes every word before it reads any.
//
// All of them lie in one range of addresses, on huge pages, each in the first gap that is large enough: what one array
// leaves serves several smaller ones or, with its neighbours, a larger one. The sizes of CKKS change with every level, so
// keeping whole arrays for requests of the same size would miss most of the time.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <cstdint>
#include <iterator>
#include <map>
#include <mutex>
#include <new>
#include <stdexcept>
#include <vector>

#if defined(__unix__) || defined(__APPLE__)
#include <sys/mman.h>
#include <sys/resource.h>
#define SOTTOVOCE_ARENA 1
#endif

#include "module.h"

namespace nb = nanobind;

namespace {

constexpr std::size_t kPage = std::size_t{2} << 20;  // aligned for huge pages

class Arena {
  public:
    // Pages in a row, or null if there is no such gap (or no arena).
    void* acquire(std::size_t pages) {
        std::lock_guard lock(mutex_);
        reserve();
        for (auto gap = gaps_.begin(); gap != gaps_.end(); ++gap) {
            const auto [start, length] = *gap;
            if (length < pages) continue;
            if (!open(start + pages)) return nullptr;
            gaps_.erase(gap);
            if (length > pages) gaps_.emplace(start + pages, length - pages);
            for (std::size_t i = start; i < start + pages; ++i) {
                if (touched_[i]) --unused_;
                touched_[i] = true;
            }
            return base_ + start * kPage;
        }
        return nullptr;
    }

    // False if the memory does not come from here.
    bool release(void* p, std::size_t pages) {
        std::lock_guard lock(mutex_);
        const std::uintptr_t at = reinterpret_cast<std::uintptr_t>(p) - reinterpret_cast<std::uintptr_t>(base_);
        if (!base_ || at >= touched_.size() * kPage) return false;
        std::size_t start = at / kPage, length = pages;
        unused_ += pages;
        auto after = gaps_.lower_bound(start);
        if (after != gaps_.end() && after->first == start + length) {
            length += after->second;
            after = gaps_.erase(after);
        }
        if (after != gaps_.begin()) {
            const auto before = std::prev(after);
            if (before->first + before->second == start) {
                start = before->first, length += before->second;
                gaps_.erase(before);
            }
        }
        gaps_.emplace(start, length);
        trim();
        return true;
    }

    std::size_t keep(std::size_t bytes) {
        std::lock_guard lock(mutex_);
        const std::size_t before = limit_;
        limit_ = bytes;
        trim();
        return before;
    }

  private:
    // Addresses only, which count for nothing but a limit of addresses: where there is one, every array is on its own.
    void reserve() {
        if (tried_) return;
        tried_ = true;
#if defined(SOTTOVOCE_ARENA)
        struct rlimit addresses;
        if (getrlimit(RLIMIT_AS, &addresses) || addresses.rlim_cur != RLIM_INFINITY) return;
        for (std::size_t size = std::size_t{1} << 38; size >= std::size_t{1} << 31; size >>= 1) {
            void* p = mmap(nullptr, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
            if (p == MAP_FAILED) continue;
            const std::uintptr_t at = reinterpret_cast<std::uintptr_t>(p), skip = (kPage - at % kPage) % kPage;
            base_ = static_cast<char*>(p) + skip;
            const std::size_t pages = (size - skip) / kPage;
#if defined(MADV_HUGEPAGE)
            madvise(base_, pages * kPage, MADV_HUGEPAGE);
#endif
            touched_.assign(pages, false);
            gaps_.emplace(0, pages);
            return;
        }
#endif
    }

    // Pages below `end` may be used. False if the system does not promise so much.
    bool open(std::size_t end) {
        if (end <= top_) return true;
#if defined(SOTTOVOCE_ARENA)
        if (mprotect(base_ + top_ * kPage, (end - top_) * kPage, PROT_READ | PROT_WRITE)) return false;
#endif
        top_ = end;
        return true;
    }

    // Back to the system, from the end of the range: the first gaps are the ones that are filled again.
    void trim() {
        for (auto gap = gaps_.rbegin(); gap != gaps_.rend() && unused_ * kPage > limit_; ++gap) {
            std::size_t last = std::min(gap->first + gap->second, top_);
            while (last > gap->first && unused_ * kPage > limit_) {
                std::size_t first = last;
                while (first > gap->first && touched_[first - 1] && unused_ * kPage > limit_) {
                    touched_[--first] = false;
                    --unused_;
                }
#if defined(SOTTOVOCE_ARENA)
                if (first < last) madvise(base_ + first * kPage, (last - first) * kPage, MADV_DONTNEED);
#endif
                last = first;
                while (last > gap->first && !touched_[last - 1]) --last;
            }
        }
    }

    std::mutex mutex_;
    bool tried_ = false;
    char* base_ = nullptr;
    std::map<std::size_t, std::size_t> gaps_;  // first page -> pages, never next to each other
    std::vector<bool> touched_;                // pages that hold memory, in use or not
    std::size_t unused_ = 0;                   // pages in gaps that hold memory
    std::size_t top_ = 0;                      // pages beyond have never been used
    std::size_t limit_ = std::size_t{1} << 30;
};

Arena& arena() {
    static auto* held = new Arena;  // arrays may outlive everything else
    return *held;
}

struct Block {
    void* p;
    std::size_t pages;
};

nb::ndarray<nb::numpy, std::uint64_t> recycled(const std::vector<std::size_t>& shape) {
    std::size_t words = 1;
    for (std::size_t n : shape) {
        if (n && words > (std::size_t{1} << 40) / n) throw std::invalid_argument("an array of this shape is too large");
        words *= n;
    }
    const std::size_t pages = words ? (words * 8 + kPage - 1) / kPage : 1;
    void* p = arena().acquire(pages);
    if (!p) p = ::operator new(pages * kPage, std::align_val_t(kPage));
    auto* block = new Block{p, pages};
    nb::capsule owner(block, [](void* b) noexcept {
        auto* held = static_cast<Block*>(b);
        if (!arena().release(held->p, held->pages)) ::operator delete(held->p, std::align_val_t(kPage));
        delete held;
    });
    return nb::ndarray<nb::numpy, std::uint64_t>(block->p, shape.size(), shape.data(), owner);
}

}  // namespace

void register_recycle(nb::module_& m) {
    m.def("recycled_words", &recycled, nb::arg("shape"), "An uninitialised array whose memory is used again later.");
    m.def("keep_recycled", [](std::size_t bytes) { return arena().keep(bytes); }, nb::arg("bytes"),
          "How much unused memory is kept; returns the old limit.");
}
