#include "media/segment_store.h"

#include <algorithm>
#include <bit>

#include "base/fault.h"
#include "base/log.h"
#include "media/device.h"

namespace peplos::media {

using format::kUnitEntriesPerBlock;
using format::kUnitEntryBytes;
using runtime::Durability;
using runtime::Task;

namespace {

constexpr uint64_t kUnitBytes = limits::kSegmentUnitBytes;
constexpr uint64_t kTableReadBytes = 4 * kMiB;
constexpr uint32_t kReserveUnitsMin = 8;

uint32_t units_for(uint64_t bytes) {
    return static_cast<uint32_t>(std::bit_ceil(div_up(bytes, kUnitBytes)));
}

uint64_t total_bytes(const std::vector<Buffer>& buffers) {
    uint64_t bytes = 0;
    for (const Buffer& buffer : buffers)
        bytes += buffer.size();
    return bytes;
}

}  // namespace

// ---- pins ----

struct SegmentPin::Entry {
    SegmentStore* store;
    SegmentInfo info;
    uint32_t pins = 0;
    bool is_removed = false;
    bool is_known = true;      // to the table: not a copy that is still being made
    bool is_replaced = false;  // by a copy that is about to be in place
};

SegmentPin::SegmentPin(Entry* entry) noexcept : entry_(entry) {
    ++entry_->pins;
}

SegmentPin::SegmentPin(const SegmentPin& other) noexcept : entry_(other.entry_) {
    if (entry_ != nullptr) ++entry_->pins;
}

SegmentPin::~SegmentPin() {
    if (entry_ == nullptr) return;
    CHECK(entry_->pins > 0);
    bool is_held_by_pins = entry_->is_removed || !entry_->is_known;
    if (--entry_->pins == 0 && is_held_by_pins) entry_->store->last_pin_gone(entry_);
}

const SegmentInfo& SegmentPin::info() const {
    CHECK(entry_ != nullptr);
    return entry_->info;
}

// ---- loading ----

SegmentStore::SegmentStore(DeviceState& device, SegmentStoreOptions options)
    : device_(device), options_(options) {}

SegmentStore::~SegmentStore() = default;

Task<Result<void>> SegmentStore::load() {
    uint32_t unit_count = device_.superblock.unit_count;
    uint64_t table_bytes = round_up(uint64_t{unit_count} * kUnitEntryBytes, kBlockBytes);
    CHECK(table_bytes <= device_.superblock.unit_table_bytes);
    allocator_ = UnitAllocator(unit_count);
    written_.assign(unit_count, false);
    table_.assign(table_bytes / kUnitEntryBytes, {});
    blocks_.assign(table_bytes / kBlockBytes, {});
    reserve_units_ = options_.reserve_units != 0 ? options_.reserve_units
                                                 : std::max(unit_count / 20, kReserveUnitsMin);
    for (uint64_t offset = 0; offset < table_bytes; offset += kTableReadBytes) {
        Buffer part = Buffer::allocate(std::min(kTableReadBytes, table_bytes - offset));
        uint64_t begin = device_.superblock.unit_table_offset + offset;
        std::vector<uint64_t> unreadable;
        CO_TRY(co_await device_.read_salvaging(begin, part, &unreadable));
        // Zeros would say that the units are free. This is no entry: they are kept from use, also
        // after the block was written again.
        for (uint64_t at : unreadable)
            std::memset(part.data() + (at - begin), 0xff, kBlockBytes);
        std::memcpy(reinterpret_cast<std::byte*>(table_.data()) + offset, part.data(), part.size());
    }
    co_return load_table();
}

Result<void> SegmentStore::load_table() {
    // Whole runs first: what cannot be read must not reach into them.
    std::vector<std::pair<uint32_t, std::string>> unreadable;
    std::vector<std::pair<uint32_t, format::UnitEntry>> replaced;
    for (uint32_t unit = 0; unit < allocator_.unit_count(); ++unit) {
        // Entries inside a run mean nothing.
        if (!allocator_.is_free(unit)) continue;
        auto decoded = format::decode_unit_entry(std::as_bytes(std::span(table_[unit])), unit,
                                                 device_.superblock.incarnation);
        if (!decoded) {
            if (decoded.error().code() == Code::unsupported) return fail(decoded.error());
            unreadable.emplace_back(unit, decoded.error().message());
            continue;
        }
        if (!*decoded) continue;
        const format::UnitEntry& entry = **decoded;
        if (entry.state == format::UnitState::prepared) {
            written_[unit] = true;
        } else if (entry.state == format::UnitState::replaced) {
            replaced.emplace_back(unit, entry);
        } else if (!load_entry(unit, entry)) {
            unreadable.emplace_back(unit, fmt::format("the entry of segment {} overlaps or repeats "
                                                      "another",
                                                      entry.segment));
        }
    }
    for (const auto& [unit, entry] : replaced) {
        if (segments_.contains(entry.segment)) {
            // Its successor is in place: the power went before this one's entry was cleared.
            PROBE("media.segments.replaced_leftover");
            table_[unit] = {};
        } else if (!load_entry(unit, entry)) {
            unreadable.emplace_back(
                unit, fmt::format("the entry of segment {} overlaps another", entry.segment));
        }
    }
    for (const auto& [unit, why] : unreadable)
        quarantine(unit, why);
    unwritten_free_units_ = 0;
    for (uint32_t unit = 0; unit < allocator_.unit_count(); ++unit) {
        if (!written_[unit] && allocator_.is_free(unit)) ++unwritten_free_units_;
    }
    return {};
}

// False: it is not to be believed.
bool SegmentStore::load_entry(uint32_t unit, const format::UnitEntry& entry) {
    bool is_inside = entry.unit_count <= allocator_.unit_count() - unit;
    if (!is_inside || segments_.contains(entry.segment) ||
        !allocator_.take(unit, entry.unit_count)) {
        return false;
    }
    SegmentInfo info{entry.segment, entry.lineage, entry.volume,    entry.kind,
                     entry.group,   unit,          entry.unit_count};
    mark_written(unit, entry.unit_count);
    std::ignore = add_entry(info);
    return true;
}

// The run that began at `unit` may have been as long as its alignment allows; whatever of that is
// not another segment's is kept from use, because it may hold the only copy of something.
void SegmentStore::quarantine(uint32_t unit, const std::string& why) {
    PROBE("media.segments.quarantine");
    uint32_t run = unit == 0 ? UnitAllocator::kSlotUnits : 1u << std::countr_zero(unit);
    run = std::min({run, UnitAllocator::kSlotUnits, allocator_.unit_count() - unit});
    uint32_t count = 0;
    while (count < run && allocator_.take(unit + count, 1))
        ++count;
    quarantined_units_ += count;
    device_.report.corruptions.push_back(fmt::format(
        "{} at offset {}: unit {}: {}; {} MiB are kept from use, and a volume whose segment lay "
        "there says so",
        device_.disk->name(),
        device_.superblock.unit_table_offset + uint64_t{unit} * kUnitEntryBytes, unit, why, count));
}

void SegmentStore::mark_written(uint32_t first_unit, uint32_t unit_count) {
    for (uint32_t i = 0; i < unit_count; ++i)
        written_[first_unit + i] = true;
}

// ---- the table ----

void SegmentStore::set_entry(const SegmentInfo& info, format::UnitState state) {
    format::UnitEntry entry;
    entry.state = state;
    entry.kind = info.kind;
    entry.unit_count = info.unit_count;
    entry.segment = info.id;
    entry.lineage = info.lineage;
    entry.volume = info.volume;
    entry.group = info.group;
    table_[info.first_unit] =
        format::encode_unit_entry(entry, info.first_unit, device_.superblock.incarnation);
    for (uint32_t i = 1; i < info.unit_count; ++i)
        table_[info.first_unit + i] = {};
}

// Free units keep the note that they were written before.
void SegmentStore::set_free(uint32_t first_unit, uint32_t unit_count) {
    format::UnitEntry prepared;
    prepared.state = format::UnitState::prepared;
    for (uint32_t unit = first_unit; unit < first_unit + unit_count; ++unit) {
        table_[unit] = written_[unit] ? format::encode_unit_entry(prepared, unit,
                                                                  device_.superblock.incarnation)
                                      : format::UnitEntryBytes{};
    }
}

// Makes the present entries of the run that begins at `unit` durable. Runs do not cross blocks of
// the table, and callers that share a block share its writes.
Task<Result<void>> SegmentStore::persist(uint32_t unit) {
    uint32_t index = unit / kUnitEntriesPerBlock;
    uint64_t wanted = ++blocks_[index].wanted;
    while (blocks_[index].durable < wanted) {
        if (device_.is_failed()) co_return fail(device_.failure());
        if (blocks_[index].is_writing) {
            co_await table_changed_.wait();
            continue;
        }
        CO_TRY(co_await write_block(index));
    }
    co_return Result<void>{};
}

Task<Result<void>> SegmentStore::write_block(uint32_t index) {
    uint64_t version = blocks_[index].wanted;
    blocks_[index].is_writing = true;
    Buffer block = Buffer::copy_of(std::as_bytes(
        std::span(table_).subspan(size_t{index} * kUnitEntriesPerBlock, kUnitEntriesPerBlock)));
    uint64_t offset = device_.superblock.unit_table_offset + uint64_t{index} * kBlockBytes;
    Durability durability =
        PLANTED("segments.volatile_entry") ? Durability::volatile_ : Durability::durable;
    Result<void> written = co_await device_.disk->write(offset, block, durability);
    blocks_[index].is_writing = false;
    if (written) {
        blocks_[index].durable = version;
    } else {
        device_.fail_for_good(written.error());
    }
    table_changed_.wake_all();
    if (!written) co_return fail(device_.failure());
    co_return Result<void>{};
}

// ---- segments ----

Task<Result<SegmentPin>> SegmentStore::create(SegmentId id, LineageId lineage, VolumeId volume,
                                              format::SegmentKind kind, uint64_t bytes,
                                              Purpose purpose, GroupId group) {
    if (bytes == 0 || bytes > limits::kSegmentBytesMax || !id) {
        co_return fail(Code::invalid_argument, "a segment {} of {} bytes: give 1 to {}", id, bytes,
                       limits::kSegmentBytesMax);
    }
    if (device_.is_failed()) co_return fail(device_.failure());
    CO_TRY_ASSIGN(runtime::Gate::Pass pass, gate_.enter());
    if (segments_.contains(id))
        co_return fail(Code::already_exists, "segment {} exists on {}", id, device_.disk->name());
    uint32_t units = units_for(bytes);
    CO_TRY_ASSIGN(uint32_t first, take_units(id, bytes, purpose));
    SegmentInfo info{id, lineage, volume, kind, group, first, units};
    SegmentPin pin = add_entry(info);
    set_entry(info);
    CO_TRY(co_await persist(first));
    co_return pin;
}

Result<uint32_t> SegmentStore::take_units(const SegmentId& id, uint64_t bytes, Purpose purpose) {
    uint32_t units = units_for(bytes);
    std::optional<uint32_t> first;
    if (has_room(bytes, purpose)) first = allocator_.allocate(units);
    if (!first) {
        return fail(Code::no_space,
                    "device {} has no {} free MiB in one run for segment {} ({} of {} MiB free, "
                    "{} of them in reserve): free space or add a device",
                    device_.disk->name(), units, id, allocator_.free_units(),
                    allocator_.unit_count(), reserve_units_);
    }
    for (uint32_t i = 0; i < units; ++i)
        unwritten_free_units_ -= written_[*first + i] ? 0 : 1;
    return *first;
}

// ---- copies that replace ----

Result<SegmentPin> SegmentStore::make_copy(const SegmentInfo& like, uint64_t bytes) {
    if (bytes == 0 || bytes > limits::kSegmentBytesMax || !like.id) {
        return fail(Code::invalid_argument, "a copy of segment {} of {} bytes", like.id, bytes);
    }
    if (device_.is_failed()) return fail(device_.failure());
    if (gate_.is_closed()) return fail(Code::stopping, "the device is being closed");
    TRY_ASSIGN(uint32_t first, take_units(like.id, bytes, Purpose::maintenance));
    SegmentInfo info = like;
    info.first_unit = first;
    info.unit_count = units_for(bytes);
    auto entry = std::unique_ptr<Entry>(new Entry{this, info});
    entry->is_known = false;
    Entry* key = entry.get();
    copies_.emplace(key, std::move(entry));
    return SegmentPin(key);
}

Task<Result<void>> SegmentStore::put_in_place(SegmentPin copy, SegmentPin bad) {
    CHECK(copy && !copy.entry_->is_known && copy.entry_->store == this);
    CHECK(!bad || bad.info().id == copy.info().id);
    CO_TRY_ASSIGN(runtime::Gate::Pass pass, gate_.enter());
    CO_TRY(co_await sync());
    CO_TRY(may_replace(copy.info().id, bad));
    if (bad) {
        // From here on it counts only as long as there is no other.
        bad.entry_->is_replaced = true;
        set_entry(bad.info(), format::UnitState::replaced);
        CO_TRY(co_await persist(bad.info().first_unit));
        CO_TRY(may_replace(copy.info().id, bad));
        std::unique_ptr<Entry> old = take_entry(bad.info().id);
        old->is_removed = true;
        ++leaving_[old->info.volume];
        removed_.emplace(bad.entry_, std::move(old));  // `bad` holds it until the end
    }
    auto found = copies_.find(copy.entry_);
    found->second->is_known = true;
    const SegmentInfo& info = copy.info();
    by_volume_[info.volume].insert(info.id);
    segments_.emplace(info.id, std::move(found->second));
    copies_.erase(found);
    mark_written(info.first_unit, info.unit_count);
    set_entry(info);
    co_return co_await persist(info.first_unit);
}

Result<void> SegmentStore::may_replace(const SegmentId& id, const SegmentPin& bad) const {
    auto found = segments_.find(id);
    if (!bad && found != segments_.end())
        return fail(Code::already_exists, "segment {} exists on {}", id, device_.disk->name());
    if (bad && (found == segments_.end() || found->second.get() != bad.entry_))
        return fail(Code::not_found, "segment {} is gone from {}", id, device_.disk->name());
    return {};
}

uint64_t SegmentStore::offset_of(const SegmentInfo& info) const {
    return device_.superblock.units_offset + uint64_t{info.first_unit} * kUnitBytes;
}

Result<void> SegmentStore::check_access(const SegmentPin& pin, uint64_t offset,
                                        uint64_t bytes) const {
    CHECK(pin && pin.entry_->store == this);
    const SegmentInfo& info = pin.info();
    if (offset % kBlockBytes != 0 || bytes % kBlockBytes != 0 || bytes == 0 ||
        offset > info.bytes() || bytes > info.bytes() - offset) {
        return fail(Code::invalid_argument, "{} bytes at {} are not whole blocks inside segment {}",
                    bytes, offset, info.id);
    }
    return {};
}

Task<Result<void>> SegmentStore::write_vector(SegmentPin pin, uint64_t offset,
                                              std::vector<Buffer> from, Durability durability) {
    CO_TRY(check_access(pin, offset, total_bytes(from)));
    if (device_.is_failed()) co_return fail(device_.failure());
    Result<void> written = co_await device_.disk->write_vector(offset_of(pin.info()) + offset,
                                                               std::move(from), durability);
    if (!written) {
        device_.fail_for_good(written.error());
        co_return fail(device_.failure());
    }
    co_return Result<void>{};
}

Task<Result<void>> SegmentStore::read(SegmentPin pin, uint64_t offset, Buffer into) {
    CO_TRY(check_access(pin, offset, into.size()));
    auto outcome = co_await device_.disk->read(offset_of(pin.info()) + offset, std::move(into));
    if (!outcome) co_return fail(failed_read(pin, offset, std::move(outcome).error()));
    co_return outcome;
}

std::string SegmentStore::place_of(const SegmentPin& pin, uint64_t offset) const {
    return fmt::format("{} at offset {} (segment {}, {} bytes in)", device_.disk->name(),
                       offset_of(pin.info()) + offset, pin.info().id, offset);
}

Error SegmentStore::corrupt_at(const SegmentPin& pin, uint64_t offset, std::string_view what) {
    std::string text =
        fmt::format("{}: volume {}: {}", place_of(pin, offset), pin.info().volume, what);
    device_.note_corruption(text);
    return Error(Code::corrupt, std::move(text));
}

Error SegmentStore::failed_read(const SegmentPin& pin, uint64_t offset, Error error) {
    Error named = std::move(error).within(
        fmt::format("{}: volume {}", place_of(pin, offset), pin.info().volume));
    device_.note_failed_read(named);
    return named;
}

Task<Result<void>> SegmentStore::read_vector(SegmentPin pin, uint64_t offset,
                                             std::vector<Buffer> into) {
    CO_TRY(check_access(pin, offset, total_bytes(into)));
    auto outcome =
        co_await device_.disk->read_vector(offset_of(pin.info()) + offset, std::move(into));
    if (!outcome) co_return fail(failed_read(pin, offset, std::move(outcome).error()));
    co_return outcome;
}

// A sync that began before the call does not cover it; the next one covers all who wait.
Task<Result<void>> SegmentStore::sync() {
    uint64_t wanted = sync_started_ + 1;
    while (sync_done_ < wanted) {
        if (device_.is_failed()) co_return fail(device_.failure());
        if (is_syncing_) {
            co_await sync_changed_.wait();
            continue;
        }
        is_syncing_ = true;
        uint64_t mine = ++sync_started_;
        Result<void> synced = co_await device_.disk->sync();
        if (!synced && PLANTED("sync.is_tried_again")) synced = co_await device_.disk->sync();
        is_syncing_ = false;
        if (synced) {
            sync_done_ = mine;
        } else {
            device_.fail_for_good(synced.error());
        }
        sync_changed_.wake_all();
    }
    co_return Result<void>{};
}

Task<Result<void>> SegmentStore::shrink(SegmentPin pin, uint64_t bytes) {
    CO_TRY(check_access(pin, 0, round_up(bytes, kBlockBytes)));
    if (device_.is_failed()) co_return fail(device_.failure());
    CO_TRY_ASSIGN(runtime::Gate::Pass pass, gate_.enter());
    Entry& entry = *pin.entry_;
    uint32_t keep = units_for(bytes);
    uint32_t had = entry.info.unit_count;
    if (keep >= had || entry.is_removed || entry.is_replaced || !entry.is_known)
        co_return Result<void>{};
    uint32_t first = entry.info.first_unit;
    entry.info.unit_count = keep;
    mark_written(first, keep);
    set_entry(entry.info);
    // The units given back are not handed out before the shorter entry is durable.
    set_free(first + keep, had - keep);
    CO_TRY(co_await persist(first));
    free_run(first + keep, had - keep);
    co_return Result<void>{};
}

// Frees the aligned runs that [first_unit, first_unit + unit_count) consists of.
void SegmentStore::free_run(uint32_t first_unit, uint32_t unit_count) {
    uint32_t end = first_unit + unit_count;
    for (uint32_t unit = first_unit; unit < end; ++unit) {
        if (!written_[unit]) ++unwritten_free_units_;
    }
    while (first_unit < end) {
        uint32_t run = UnitAllocator::kSlotUnits;
        while (first_unit % run != 0 || run > end - first_unit)
            run /= 2;
        allocator_.release(first_unit, run);
        first_unit += run;
    }
}

Task<Result<void>> SegmentStore::remove(SegmentId id) {
    if (!segments_.contains(id))
        co_return fail(Code::not_found, "no segment {} on {}", id, device_.disk->name());
    if (device_.is_failed()) co_return fail(device_.failure());
    std::unique_ptr<Entry> entry = take_entry(id);
    entry->is_removed = true;
    ++leaving_[entry->info.volume];
    if (entry->pins != 0) {
        PROBE("media.segments.remove_pinned");
        Entry* key = entry.get();
        removed_.emplace(key, std::move(entry));
        co_return Result<void>{};
    }
    CO_TRY_ASSIGN(runtime::Gate::Pass pass, gate_.enter());
    co_return co_await clear(std::move(entry));
}

void SegmentStore::last_pin_gone(Entry* entry) {
    if (auto copy = copies_.find(entry); copy != copies_.end()) {
        std::unique_ptr<Entry> owned = std::move(copy->second);
        copies_.erase(copy);
        free_run(owned->info.first_unit, owned->info.unit_count);
        return;
    }
    auto found = removed_.find(entry);
    CHECK(found != removed_.end());
    std::unique_ptr<Entry> owned = std::move(found->second);
    removed_.erase(found);
    gate_.spawn(device_.env.executor, clear_in_background(std::move(owned)));
}

Task<void> SegmentStore::clear_in_background(std::unique_ptr<Entry> entry) {
    // A failure has taken the device out of service and is logged there.
    std::ignore = co_await clear(std::move(entry));
}

Task<Result<void>> SegmentStore::clear(std::unique_ptr<Entry> entry) {
    const SegmentInfo& info = entry->info;
    mark_written(info.first_unit, info.unit_count);
    set_free(info.first_unit, info.unit_count);
    CO_TRY(co_await persist(info.first_unit));
    free_run(info.first_unit, info.unit_count);
    auto leaving = leaving_.find(info.volume);
    if (--leaving->second == 0) leaving_.erase(leaving);
    co_return Result<void>{};
}

SegmentPin SegmentStore::add_entry(const SegmentInfo& info) {
    auto [place, inserted] =
        segments_.emplace(info.id, std::unique_ptr<Entry>(new Entry{this, info}));
    CHECK(inserted, "segment {} exists", info.id);
    by_volume_[info.volume].insert(info.id);
    return SegmentPin(place->second.get());
}

// Requires: it is there.
std::unique_ptr<SegmentPin::Entry> SegmentStore::take_entry(SegmentId id) {
    auto found = segments_.find(id);
    std::unique_ptr<Entry> entry = std::move(found->second);
    segments_.erase(found);
    auto siblings = by_volume_.find(entry->info.volume);
    siblings->second.erase(id);
    if (siblings->second.empty()) by_volume_.erase(siblings);
    return entry;
}

SegmentPin SegmentStore::find(SegmentId id) {
    auto found = segments_.find(id);
    return found == segments_.end() ? SegmentPin() : SegmentPin(found->second.get());
}

std::vector<SegmentInfo> SegmentStore::list() const {
    std::vector<SegmentInfo> out;
    out.reserve(segments_.size());
    for (const auto& [id, entry] : segments_)
        out.push_back(entry->info);
    std::ranges::sort(out, {}, &SegmentInfo::id);
    return out;
}

std::vector<SegmentInfo> SegmentStore::list(VolumeId volume) const {
    std::vector<SegmentInfo> out;
    auto found = by_volume_.find(volume);
    if (found == by_volume_.end()) return out;
    out.reserve(found->second.size());
    for (const SegmentId& id : found->second)
        out.push_back(segments_.at(id)->info);
    return out;
}

uint64_t SegmentStore::stored_bytes(VolumeId volume) const {
    uint64_t bytes = 0;
    auto found = by_volume_.find(volume);
    if (found == by_volume_.end()) return bytes;
    for (const SegmentId& id : found->second)
        bytes += segments_.at(id)->info.bytes();
    return bytes;
}

// ---- space ----

SegmentSpace SegmentStore::space() const {
    return {allocator_.unit_count(), allocator_.free_units(),       reserve_units_,
            quarantined_units_,      allocator_.largest_free_run(), unwritten_free_units_};
}

bool SegmentStore::has_room(uint64_t bytes, Purpose purpose) const {
    uint32_t units = units_for(bytes);
    uint32_t reserve = purpose == Purpose::user ? reserve_units_ : 0;
    return allocator_.free_units() >= uint64_t{units} + reserve &&
           allocator_.largest_free_run() >= units;
}

Task<Result<uint64_t>> SegmentStore::prezero(uint64_t bytes) {
    CO_TRY_ASSIGN(runtime::Gate::Pass pass, gate_.enter());
    uint64_t done = 0;
    while (done < bytes && unwritten_free_units_ != 0) {
        if (device_.is_failed()) co_return fail(device_.failure());
        std::optional<uint32_t> unit = take_unwritten();
        if (!unit) break;
        Buffer zeros = Buffer::zeroed(kUnitBytes);
        uint64_t offset = device_.superblock.units_offset + uint64_t{*unit} * kUnitBytes;
        Result<void> written = co_await device_.disk->write(offset, zeros, Durability::durable);
        if (!written) {
            device_.fail_for_good(written.error());
            co_return fail(device_.failure());
        }
        written_[*unit] = true;
        set_free(*unit, 1);
        CO_TRY(co_await persist(*unit));
        free_run(*unit, 1);
        done += kUnitBytes;
    }
    co_return done;
}

// Takes a free unit that was never written, going round the device.
std::optional<uint32_t> SegmentStore::take_unwritten() {
    uint32_t count = allocator_.unit_count();
    for (uint32_t i = 0; i < count; ++i) {
        uint32_t unit = (prezero_next_ + i) % count;
        if (written_[unit] || !allocator_.take(unit, 1)) continue;
        --unwritten_free_units_;
        prezero_next_ = unit + 1;
        return unit;
    }
    return std::nullopt;
}

Task<void> SegmentStore::close() {
    co_await gate_.close();
}

}  // namespace peplos::media
