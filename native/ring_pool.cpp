#include "ring_pool.h"

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <mutex>
#include <thread>
#include <vector>

#if defined(__unix__) || defined(__APPLE__)
#include <unistd.h>
#endif

namespace {

class Pool {
  public:
    // Workers are started on demand and never joined: the pool lives as long as the process.
    void run(std::size_t tasks, int helpers, const std::function<void(std::size_t)>& work) {
        while (static_cast<int>(workers_) < helpers) {
            std::thread([this, id = workers_] { loop(id); }).detach();
            ++workers_;
        }
        {
            std::lock_guard lock(mutex_);
            work_ = &work;
            tasks_ = tasks;
            next_.store(0);
            invited_ = helpers;
            active_ = helpers;
            ++generation_;
        }
        wake_.notify_all();
        drain(work, tasks);
        std::unique_lock lock(mutex_);
        done_.wait(lock, [this] { return active_ == 0; });
        work_ = nullptr;
    }

  private:
    void drain(const std::function<void(std::size_t)>& work, std::size_t tasks) {
        for (std::size_t i = next_.fetch_add(1); i < tasks; i = next_.fetch_add(1)) work(i);
    }

    void loop(std::size_t id) {
        std::size_t seen = 0;
        for (;;) {
            std::unique_lock lock(mutex_);
            wake_.wait(lock, [&] { return generation_ != seen; });
            seen = generation_;
            if (id >= static_cast<std::size_t>(invited_) || !work_) continue;
            const auto* work = work_;
            const std::size_t tasks = tasks_;
            lock.unlock();
            drain(*work, tasks);
            lock.lock();
            if (--active_ == 0) done_.notify_one();
        }
    }

    std::mutex mutex_;
    std::condition_variable wake_, done_;
    const std::function<void(std::size_t)>* work_ = nullptr;
    std::atomic<std::size_t> next_{0};
    std::size_t tasks_ = 0, generation_ = 0, workers_ = 0;
    int invited_ = 0, active_ = 0;
};

std::mutex g_busy;
std::atomic<Pool*> g_pool{nullptr};
std::atomic<long> g_owner{-1};

long process_id() {
#if defined(__unix__) || defined(__APPLE__)
    return static_cast<long>(getpid());
#else
    return 0;
#endif
}

}  // namespace

void parallel_for(std::size_t tasks, int threads, const std::function<void(std::size_t)>& work) {
    const int helpers = std::min<int>(threads, static_cast<int>(std::min<std::size_t>(tasks, 256))) - 1;
    std::unique_lock busy(g_busy, std::defer_lock);
    if (helpers < 1 || !busy.try_lock()) {
        for (std::size_t i = 0; i < tasks; ++i) work(i);
        return;
    }
    // A forked child inherits the pool object but none of its threads: it starts its own pool.
    if (g_owner.load() != process_id()) {
        g_pool.store(new Pool());
        g_owner.store(process_id());
    }
    g_pool.load()->run(tasks, helpers, work);
}
