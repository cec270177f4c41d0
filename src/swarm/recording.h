#pragma once

#include <array>
#include <functional>
#include <list>
#include <map>
#include <memory>
#include <vector>

#include "sim/disk.h"

namespace peplos::swarm {

// The durable content of a disk: pages that are not zeros, and a sum over them.
class Image {
  public:
    using Page = std::array<std::byte, kBlockBytes>;
    using PagePtr = std::shared_ptr<const Page>;

    // Null: zeros.
    void put(uint64_t page, PagePtr content);
    PagePtr get(uint64_t page) const;
    const std::map<uint64_t, PagePtr>& pages() const { return pages_; }
    uint64_t sum() const { return sum_; }

  private:
    std::map<uint64_t, PagePtr> pages_;
    uint64_t sum_ = 0;
};

// Listens to a disk and knows what it may hold after a power loss at this moment.
class Recording final : public sim::DiskObserver {
  public:
    static constexpr size_t kSubsetWritesMax = 3;

    // `changed` is called after everything that changes what a power loss would leave.
    explicit Recording(std::function<void()> changed) : changed_(std::move(changed)) {}

    void submitted(uint64_t id, const sim::DiskMedia::Request& request) override;
    void completed(uint64_t id, bool succeeded) override;

    // Calls `visit` with each content that the disk may have after a power loss now.
    void each_image(const std::function<void(const Image&)>& visit) const;
    // Everything that was written so far is durable: where a recording begins.
    void settle();

  private:
    struct Write {
        uint64_t id;
        uint64_t first_page;
        std::vector<Image::PagePtr> pages;
        bool is_durable;    // once it completes
        bool is_in_flight;  // else done, and waits for a sync
    };
    struct Sync {
        uint64_t id;
        std::vector<uint64_t> covered;
    };
    static void land(Image& image, const Write& write, size_t begin, size_t end);
    void visit_halves(const std::function<void(const Image&)>& visit) const;

    std::function<void()> changed_;
    Image durable_;
    std::list<Write> pending_;  // in the order of submission
    std::vector<Sync> syncs_;
};

}  // namespace peplos::swarm
