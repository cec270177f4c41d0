#include "sim/disk.h"

#include <algorithm>
#include <cstring>

#include "base/crc32c.h"
#include "sim/world.h"

namespace peplos::sim {
namespace {

constexpr uint32_t kSectorsPerPage = kBlockBytes / kSectorBytes;
const std::array<std::byte, kBlockBytes> kZeros{};

bool overlap(uint64_t a, uint64_t a_bytes, uint64_t b, uint64_t b_bytes) {
    return a < b + b_bytes && b < a + a_bytes;
}

uint32_t crc_of(const std::vector<Buffer>& buffers) {
    uint32_t crc = 0;
    for (const Buffer& buffer : buffers)
        crc = crc32c(buffer.bytes(), crc);
    return crc;
}

bool has(const std::vector<DiskFault>& faults, DiskEffect effect) {
    return std::ranges::any_of(faults, [&](const DiskFault& f) { return f.effect == effect; });
}

// Calls `visit(page, bytes)` for each page that the buffers cover from `offset` on. Buffers are
// multiples of a page.
template <typename Visit>
void for_each_page(uint64_t offset, std::vector<Buffer>& buffers, Visit visit) {
    uint64_t page = offset / kBlockBytes;
    for (Buffer& buffer : buffers) {
        for (size_t at = 0; at < buffer.size(); at += kBlockBytes)
            visit(page++, buffer.data() + at);
    }
}

}  // namespace

DiskMedia::DiskMedia(World* world, std::string name, uint64_t bytes, DiskProfile profile)
    : world_(world),
      name_(std::move(name)),
      size_bytes_(bytes),
      profile_(profile),
      random_(world->seed(), mix_bits(std::hash<std::string>{}(name_))) {}

const DiskMedia::Page* DiskMedia::find_page(uint64_t page) const {
    auto it = pages_.find(page);
    return it == pages_.end() ? nullptr : it->second.get();
}

void DiskMedia::peek(uint64_t offset, MutableBytes into) const {
    CHECK(offset + into.size() <= size_bytes_);
    for (size_t done = 0; done < into.size();) {
        uint64_t within = (offset + done) % kBlockBytes;
        size_t count = std::min<size_t>(into.size() - done, kBlockBytes - within);
        const Page* page = find_page((offset + done) / kBlockBytes);
        const std::byte* from = page == nullptr ? kZeros.data() : page->data();
        std::memcpy(into.data() + done, from + within, count);
        done += count;
    }
}

void DiskMedia::poke(uint64_t offset, Bytes from) {
    CHECK(offset + from.size() <= size_bytes_);
    for (size_t done = 0; done < from.size();) {
        uint64_t page = (offset + done) / kBlockBytes;
        uint64_t within = (offset + done) % kBlockBytes;
        size_t count = std::min<size_t>(from.size() - done, kBlockBytes - within);
        Page content = kZeros;
        if (const Page* old = find_page(page)) content = *old;
        std::memcpy(content.data() + within, from.data() + done, count);
        store_page(page, content.data(), Durability::durable);
        done += count;
    }
}

void DiskMedia::corrupt(uint64_t offset, uint64_t bytes) {
    CHECK(offset + bytes <= size_bytes_);
    for (uint64_t at = offset; at < offset + bytes; ++at) {
        uint64_t page = at / kBlockBytes;
        auto& content = pages_[page];
        if (content == nullptr) content = std::make_unique<Page>(kZeros);
        (*content)[at % kBlockBytes] ^= std::byte{0x10};
        auto it = history_.find(page);
        if (it == history_.end()) continue;
        for (Version& version : it->second) {
            if (version.content == nullptr) version.content = std::make_unique<Page>(kZeros);
            (*version.content)[at % kBlockBytes] ^= std::byte{0x10};
        }
    }
}

DiskMedia::Contents DiskMedia::contents() const {
    Contents out;
    for (const auto& [page, content] : pages_) {
        if (content == nullptr || *content == kZeros) continue;
        out.emplace(page * kBlockBytes, *content);
    }
    return out;
}

void DiskMedia::set_contents(const Contents& contents) {
    CHECK(holder_ == nullptr && in_flight_.empty());
    pages_.clear();
    history_.clear();
    for (const auto& [offset, content] : contents)
        pages_[offset / kBlockBytes] = std::make_unique<Page>(content);
}

void DiskMedia::spoil(uint64_t offset, uint64_t bytes) {
    CHECK(offset + bytes <= size_bytes_);
    for (uint64_t page = offset / kBlockBytes; page < div_up(offset + bytes, kBlockBytes); ++page)
        unreadable_.insert(page);
}

std::optional<uint64_t> DiskMedia::find_page_in_use(uint64_t n, uint64_t but,
                                                    uint64_t but_bytes) const {
    std::vector<uint64_t> found;
    for (const auto& [page, content] : pages_) {
        if (!overlap(page * kBlockBytes, kBlockBytes, but, but_bytes)) found.push_back(page);
    }
    if (found.empty()) return std::nullopt;
    auto chosen = found.begin() + static_cast<ptrdiff_t>(n % found.size());
    std::ranges::nth_element(found, chosen);
    return *chosen;
}

std::unique_ptr<DiskMedia::Platter> DiskMedia::exchange(std::unique_ptr<Platter> platter) {
    CHECK(in_flight_.empty());
    if (platter == nullptr) platter = std::make_unique<Platter>();
    std::swap(pages_, platter->pages);
    std::swap(history_, platter->history);
    std::swap(unreadable_, platter->unreadable);
    return platter;
}

bool DiskMedia::is_in_log(const Request& request) const {
    return overlap(request.offset, request.bytes, log_offset_, log_bytes_);
}

// What a caller was told is durable, and is not. A volatile write that is lost stays so: whoever
// relies on it has synced and then says what it holds.
void DiskMedia::lose_write(const Request& request) {
    LostWrite lost{.acknowledged = world_->now(), .is_in_log = is_in_log(request), .pages = {}};
    if (request.durability != Durability::durable) return;
    std::vector<Buffer> buffers = request.buffers;
    for_each_page(request.offset, buffers, [&](uint64_t page, const std::byte* content) {
        lost.pages.emplace_back(page, new Page);
        std::memcpy(lost.pages.back().second->data(), content, kBlockBytes);
    });
    lost_.push_back(std::move(lost));
}

size_t DiskMedia::land_lost_end() {
    size_t count = 0;
    std::vector<LostWrite> gone = std::exchange(lost_, {});
    for (const LostWrite& lost : gone) {
        if (lost.pages.empty() || (lost.is_in_log && lost.acknowledged < log_begun_)) continue;
        ++count;
        for (const auto& [page, content] : lost.pages)
            store_page(page, content->data(), Durability::durable);
    }
    return count;
}

Process* DiskMedia::lock(Process* process) {
    if (holder_ != nullptr) return holder_;
    holder_ = last_holder_ = process;
    return nullptr;
}

void DiskMedia::unlock(Process* process) {
    if (holder_ == process) holder_ = nullptr;
}

std::vector<DiskFault> DiskMedia::faults_for(const Request& request) {
    std::vector<DiskFault> out;
    for (DiskFault& fault : faults_) {
        if (fault.operation != request.operation || fault.count == 0) continue;
        bool everywhere = request.operation == DiskOperation::sync;
        uint64_t bytes = std::min(fault.bytes, UINT64_MAX - fault.offset);
        if (!everywhere && !overlap(fault.offset, bytes, request.offset, request.bytes)) continue;
        if (fault.skip != 0) {
            --fault.skip;
            continue;
        }
        --fault.count;
        out.push_back(fault);
    }
    return out;
}

void DiskMedia::check_contract(const Request& request) const {
    CHECK(request.offset % kBlockBytes == 0 && request.bytes % kBlockBytes == 0,
          "{}: unaligned I/O at {} of {} bytes", name_, request.offset, request.bytes);
    for (const Buffer& buffer : request.buffers) {
        CHECK(buffer.size() % kBlockBytes == 0, "{}: a buffer of {} bytes", name_, buffer.size());
        CHECK(reinterpret_cast<uintptr_t>(buffer.data()) % kBlockBytes == 0,
              "{}: a buffer is not aligned to {} bytes", name_, kBlockBytes);
    }
    if (request.operation == DiskOperation::sync) return;
    for (const InFlight& other : in_flight_) {
        if (other.request.operation == DiskOperation::sync) continue;
        if (request.operation == DiskOperation::read &&
            other.request.operation == DiskOperation::read) {
            continue;
        }
        CHECK(!overlap(request.offset, request.bytes, other.request.offset, other.request.bytes),
              "{}: I/O in flight overlaps: {} bytes at {} and {} bytes at {}", name_, request.bytes,
              request.offset, other.request.bytes, other.request.offset);
    }
}

Duration DiskMedia::latency_of(const Request& request, const std::vector<DiskFault>& faults) {
    LatencyRange range = profile_.sync;
    if (request.operation == DiskOperation::read) range = profile_.read;
    if (request.operation == DiskOperation::write) {
        range = request.durability == Durability::durable ? profile_.durable_write : profile_.write;
    }
    auto low = static_cast<uint64_t>(range.low.count());
    auto high = static_cast<uint64_t>(range.high.count());
    Duration latency(random_.between(low, std::max(low, high)));
    for (const DiskFault& fault : faults) {
        if (fault.effect == DiskEffect::slow) latency += fault.delay;
    }
    return latency;
}

void DiskMedia::submit(Process* process, Request request, Handler handler) {
    check_contract(request);
    InFlight operation{.id = operation_next_++,
                       .process = process,
                       .request = std::move(request),
                       .handler = std::move(handler),
                       .sequence_at_submit = sequence_,
                       .submitted = world_->now(),
                       .crc = 0,
                       .faults = {}};
    const Request& what = operation.request;
    if (what.operation == DiskOperation::write) operation.crc = crc_of(what.buffers);
    if (!faults_.empty()) operation.faults = faults_for(what);
    world_->note(mix_bits(what.offset) ^ what.bytes ^ operation.crc ^
                 (uint64_t{static_cast<uint8_t>(what.operation)} << 60));
    Duration latency = latency_of(what, operation.faults);
    bool stuck = has(operation.faults, DiskEffect::stuck);
    uint64_t id = operation.id;
    if (observer_ != nullptr) observer_->submitted(id, what);
    in_flight_.push_back(std::move(operation));
    if (!stuck) world_->at(world_->now() + latency, process, [this, id] { complete(id); });
}

void DiskMedia::complete(uint64_t id) {
    auto it = std::ranges::find(in_flight_, id, &InFlight::id);
    CHECK(it != in_flight_.end());
    InFlight operation = std::move(*it);
    in_flight_.erase(it);
    Result<void> result = carry_out(operation);
    if (observer_ != nullptr) observer_->completed(id, result.has_value());
    operation.handler(std::move(result));
}

Result<void> DiskMedia::carry_out(InFlight& operation) {
    Request& request = operation.request;
    uint64_t offset = request.offset;
    for (const DiskFault& fault : operation.faults) {
        if (fault.effect != DiskEffect::misplaced) continue;
        uint64_t moved = offset + static_cast<uint64_t>(fault.delta);
        // It was armed before anybody knew how long the write would be.
        if (moved + request.bytes > size_bytes_ || moved > size_bytes_) continue;
        CHECK(moved % kBlockBytes == 0);
        offset = moved;
    }
    bool fails = has(operation.faults, DiskEffect::io_error);
    switch (request.operation) {
        case DiskOperation::read:
            ++counters_.reads;
            counters_.bytes_read += request.bytes;
            fails |= is_unreadable(offset, request.bytes);
            if (fails) return fail(Code::io_error, "{}: read at {} failed", name_, offset);
            carry_out_read(operation, offset);
            return {};
        case DiskOperation::write:
            return carry_out_write(operation, offset);
        case DiskOperation::sync:
            ++counters_.syncs;
            if (fails) {
                // As a kernel does: what was dirty is forgotten, and a second sync says nothing.
                for (auto& [page, versions] : history_) {
                    for (Version& version : versions)
                        version.sequence = UINT64_MAX;
                }
                return fail(Code::io_error, "{}: sync failed", name_);
            }
            carry_out_sync(operation.sequence_at_submit);
            return {};
        case DiskOperation::zero:
            ++counters_.zeros;
            if (fails) {
                land_in_part(request, random_);
                return fail(Code::io_error, "{}: zeroing at {} failed", name_, offset);
            }
            if (has(operation.faults, DiskEffect::no_space)) {
                return fail(Code::no_space, "{}: no space left", name_);
            }
            zero_pages(offset, request.bytes, Durability::durable);
            return {};
    }
    return {};
}

bool DiskMedia::is_unreadable(uint64_t offset, uint64_t bytes) const {
    auto first = unreadable_.lower_bound(offset / kBlockBytes);
    return first != unreadable_.end() && *first < div_up(offset + bytes, kBlockBytes);
}

void DiskMedia::carry_out_read(InFlight& operation, uint64_t offset) {
    for_each_page(offset, operation.request.buffers, [&](uint64_t page, std::byte* into) {
        const Page* content = find_page(page);
        std::memcpy(into, content == nullptr ? kZeros.data() : content->data(), kBlockBytes);
        if (has(operation.faults, DiskEffect::garbled)) {
            into[random_.pick(kBlockBytes)] ^= std::byte{1};
        }
    });
}

Result<void> DiskMedia::carry_out_write(InFlight& operation, uint64_t offset) {
    Request& request = operation.request;
    CHECK(crc_of(request.buffers) == operation.crc,
          "{}: a buffer changed while it was written at {}", name_, request.offset);
    ++counters_.writes;
    counters_.bytes_written += request.bytes;
    if (has(operation.faults, DiskEffect::io_error)) {
        land_in_part(request, random_);
        return fail(Code::io_error, "{}: write at {} failed", name_, offset);
    }
    if (has(operation.faults, DiskEffect::no_space)) {
        return fail(Code::no_space, "{}: no space left", name_);
    }
    if (has(operation.faults, DiskEffect::lost)) {
        lose_write(request);
        return {};
    }
    if (offset != request.offset) {
        lose_write(request);
    } else if (is_in_log(request)) {
        log_begun_ = std::max(log_begun_, operation.submitted);
        log_end_ = request.offset;
    }
    bool garbled = has(operation.faults, DiskEffect::garbled);
    ++sequence_;
    for_each_page(offset, request.buffers, [&](uint64_t page, const std::byte* content) {
        store_page(page, content, request.durability);
        if (garbled) corrupt(page * kBlockBytes + random_.pick(kBlockBytes));
    });
    return {};
}

void DiskMedia::carry_out_sync(uint64_t sequence) {
    for (auto it = history_.begin(); it != history_.end();) {
        // What came before a durable version is gone, also where a failed sync had forgotten it.
        std::vector<Version>& versions = it->second;
        auto is_covered = [sequence](const Version& v) { return v.sequence <= sequence; };
        auto newest = std::ranges::find_if(versions.rbegin(), versions.rend(), is_covered);
        versions.erase(versions.begin(), newest.base());
        it = it->second.empty() ? history_.erase(it) : std::next(it);
    }
}

void DiskMedia::store_page(uint64_t page, const std::byte* content, Durability durability) {
    if (!unreadable_.empty()) unreadable_.erase(page);
    for (LostWrite& lost : lost_)
        std::erase_if(lost.pages, [page](const auto& one) { return one.first == page; });
    auto& place = pages_[page];
    if (durability == Durability::durable) {
        if (!history_.empty()) history_.erase(page);
        if (place == nullptr) place.reset(new Page);
    } else {
        history_[page].push_back({sequence_, std::move(place)});
        place.reset(new Page);
    }
    std::memcpy(place->data(), content, kBlockBytes);
}

void DiskMedia::store_sectors(uint64_t page, const std::byte* content, uint8_t mask) {
    Page mixed = kZeros;
    if (const Page* old = find_page(page)) mixed = *old;
    for (uint32_t sector = 0; sector < kSectorsPerPage; ++sector) {
        if ((mask >> sector & 1) == 0) continue;
        std::memcpy(mixed.data() + sector * kSectorBytes, content + sector * kSectorBytes,
                    kSectorBytes);
    }
    store_page(page, mixed.data(), Durability::volatile_);
}

void DiskMedia::zero_pages(uint64_t offset, uint64_t bytes, Durability durability) {
    uint64_t first = offset / kBlockBytes;
    uint64_t end = first + bytes / kBlockBytes;
    std::vector<uint64_t> touched;
    if (bytes / kBlockBytes <= pages_.size()) {
        for (uint64_t page = first; page < end; ++page) {
            if (pages_.contains(page)) touched.push_back(page);
        }
    } else {
        for (const auto& [page, content] : pages_) {
            if (page >= first && page < end) touched.push_back(page);
        }
    }
    ++sequence_;
    unreadable_.erase(unreadable_.lower_bound(first), unreadable_.lower_bound(end));
    std::ranges::sort(touched);
    for (uint64_t page : touched) {
        if (durability == Durability::durable) {
            history_.erase(page);
            pages_.erase(page);
        } else {
            store_page(page, kZeros.data(), durability);
        }
    }
}

// The part of a write or zeroing that reached the device before it was interrupted: nothing, all,
// or any of its sectors.
void DiskMedia::land_in_part(const Request& request, Random& random) {
    uint64_t how = random.pick(4);
    if (how == 0) return;
    ++sequence_;
    if (request.operation == DiskOperation::zero) {
        if (how == 1) return zero_pages(request.offset, request.bytes, Durability::volatile_);
        uint64_t pages = random.pick(request.bytes / kBlockBytes + 1);
        return zero_pages(request.offset, pages * kBlockBytes, Durability::volatile_);
    }
    if (request.operation != DiskOperation::write) return;
    std::vector<Buffer> buffers = request.buffers;
    uint64_t prefix_sectors = random.pick(request.bytes / kSectorBytes + 1);
    uint64_t sectors_seen = 0;
    for_each_page(request.offset, buffers, [&](uint64_t page, const std::byte* content) {
        uint8_t mask = 0xff;
        if (how == 2) mask = static_cast<uint8_t>(random.pick(256));
        if (how == 3) {
            uint64_t left = prefix_sectors - std::min(prefix_sectors, sectors_seen);
            if (left < kSectorsPerPage) mask = static_cast<uint8_t>((1u << left) - 1);
            sectors_seen += kSectorsPerPage;
        }
        if (mask != 0) store_sectors(page, content, mask);
    });
}

void DiskMedia::drop_in_flight(Process* process, Random& random) {
    std::list<InFlight> gone;
    for (auto it = in_flight_.begin(); it != in_flight_.end();) {
        auto next = std::next(it);
        if (it->process == process) gone.splice(gone.end(), in_flight_, it);
        it = next;
    }
    for (InFlight& operation : gone)
        land_in_part(operation.request, random);
}

void DiskMedia::lose_power(Random& random, CrashOptions options) {
    CrashMode mode = options.mode;
    if (mode == CrashMode::by_seed) mode = static_cast<CrashMode>(1 + random.pick(5));
    uint64_t cutoff = random.pick(sequence_ + 1);
    // In the order of pages, so that the result does not hang on a hash table's order.
    std::vector<uint64_t> pages;
    pages.reserve(history_.size());
    for (const auto& [page, versions] : history_)
        pages.push_back(page);
    std::ranges::sort(pages);
    for (uint64_t page : pages) {
        settle_page(page, history_[page], mode, cutoff, random, options);
    }
    history_.clear();
}

// versions[0] is the durable content, versions[i] what stood before the write i + 1, and the page
// itself the newest: any of them may be what the media hold.
void DiskMedia::settle_page(uint64_t page, std::vector<Version>& versions, CrashMode mode,
                            uint64_t cutoff, Random& random, CrashOptions options) {
    size_t count = versions.size() + 1;
    Page newest = *pages_[page];
    auto content_of = [&](size_t version) -> const std::byte* {
        if (version + 1 == count) return newest.data();
        const Page* content = versions[version].content.get();
        return content == nullptr ? kZeros.data() : content->data();
    };
    Page settled;
    if (mode == CrashMode::sectors) {
        for (uint32_t sector = 0; sector < kSectorsPerPage; ++sector) {
            size_t at = sector * kSectorBytes;
            std::memcpy(settled.data() + at, content_of(random.pick(count)) + at, kSectorBytes);
            if (!random.chance(options.cut_sector_permille)) continue;
            size_t cut = random.pick(kSectorBytes);
            std::memcpy(settled.data() + at, content_of(random.pick(count)) + at, cut);
        }
    } else {
        size_t version = 0;
        if (mode == CrashMode::keep) version = count - 1;
        if (mode == CrashMode::pages) version = random.pick(count);
        if (mode == CrashMode::prefix) {
            while (version + 1 < count && versions[version].sequence <= cutoff)
                ++version;
        }
        std::memcpy(settled.data(), content_of(version), kBlockBytes);
    }
    *pages_[page] = settled;
}

// ---- the seam ----

namespace {

uint64_t bytes_of_all(const std::vector<Buffer>& buffers) {
    uint64_t bytes = 0;
    for (const Buffer& buffer : buffers)
        bytes += buffer.size();
    return bytes;
}

}  // namespace

Task<Result<void>> SimDisk::perform(DiskMedia::Request request) {
    if (request.offset > size_bytes() || request.bytes > size_bytes() - request.offset) {
        co_return fail(Code::invalid_argument, "{}: {} bytes at {} lie outside the device", name(),
                       request.bytes, request.offset);
    }
    CHECK(media_->is_open_by(process_), "{}: I/O by a process that does not hold it", name());
    co_return co_await asio::async_initiate<const asio::use_awaitable_t<runtime::Executor>,
                                            void(Result<void>)>(
        [this](auto handler, DiskMedia::Request r) {
            media_->submit(process_, std::move(r), std::move(handler));
        },
        runtime::kUseTask, std::move(request));
}

Task<Result<void>> SimDisk::read(uint64_t offset, Buffer into) {
    return read_vector(offset, {std::move(into)});
}

Task<Result<void>> SimDisk::read_vector(uint64_t offset, std::vector<Buffer> into) {
    uint64_t bytes = bytes_of_all(into);
    return perform({DiskOperation::read, Durability::volatile_, offset, bytes, std::move(into)});
}

Task<Result<void>> SimDisk::write(uint64_t offset, Buffer from, Durability durability) {
    return write_vector(offset, {std::move(from)}, durability);
}

Task<Result<void>> SimDisk::write_vector(uint64_t offset, std::vector<Buffer> from,
                                         Durability durability) {
    CHECK(from.size() <= 1024);
    uint64_t bytes = bytes_of_all(from);
    return perform({DiskOperation::write, durability, offset, bytes, std::move(from)});
}

Task<Result<void>> SimDisk::sync() {
    return perform({DiskOperation::sync, Durability::volatile_, 0, 0, {}});
}

Task<Result<void>> SimDisk::zero(uint64_t offset, uint64_t bytes) {
    return perform({DiskOperation::zero, Durability::durable, offset, bytes, {}});
}

}  // namespace peplos::sim
