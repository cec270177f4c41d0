#pragma once

#include <memory>
#include <set>
#include <string>
#include <unordered_map>
#include <vector>

#include "format/unit_entry.h"
#include "media/unit_allocator.h"
#include "runtime/env.h"
#include "runtime/gate.h"

namespace peplos::media {

class DeviceState;
class SegmentStore;

struct SegmentStoreOptions {
    // Units that only Purpose::maintenance may take; 0: a twentieth of the device, at least 8.
    uint32_t reserve_units = 0;
};

// Who asks for units.
enum class Purpose : uint8_t {
    user,         // drains and large writes: leave the reserve alone
    maintenance,  // the cleaner, map pages, checkpoints: without them nothing becomes free
};

// What the store knows of a segment; content and index are format/segment_layout's.
struct SegmentInfo {
    SegmentId id;
    LineageId lineage;
    VolumeId volume;
    format::SegmentKind kind = format::SegmentKind::data;
    GroupId group;  // the nodes that have copies; 0: this device has the only one
    uint32_t first_unit = 0;
    uint32_t unit_count = 0;
    uint64_t bytes() const { return unit_count * limits::kSegmentUnitBytes; }
};

// Holds a segment in existence: while a pin lives, its units are not given to another segment.
// Every access goes through one. Copies hold too. A pin does not outlive its store.
class [[nodiscard]] SegmentPin {
  public:
    SegmentPin() = default;
    SegmentPin(const SegmentPin& other) noexcept;
    SegmentPin(SegmentPin&& other) noexcept : entry_(std::exchange(other.entry_, nullptr)) {}
    SegmentPin& operator=(SegmentPin other) noexcept {
        std::swap(entry_, other.entry_);
        return *this;
    }
    ~SegmentPin();
    explicit operator bool() const { return entry_ != nullptr; }
    const SegmentInfo& info() const;

  private:
    friend class SegmentStore;
    struct Entry;
    explicit SegmentPin(Entry* entry) noexcept;
    Entry* entry_ = nullptr;
};

struct SegmentSpace {
    uint32_t total_units = 0;
    uint32_t free_units = 0;
    uint32_t reserve_units = 0;      // part of free_units that `user` may not take
    uint32_t quarantined_units = 0;  // behind unreadable table entries: never handed out
    uint32_t largest_free_run = 0;   // in units
    uint32_t unwritten_units = 0;    // free ones that prezero() has not reached yet
};

// The segments of one device. A segment takes a power-of-two run of 1 MiB units.
//
// Invariants
//   1. A segment's unit entry is durable before its first byte is written; of a copy that is to
//      replace a bad one, when it is whole: until then nothing refers to it.
//   2. Units are free only when no durable entry covers them.
//   3. A pinned segment keeps its units, whatever remove() was told.
// Relax 1 and a restart hands out units that hold live data.
//
// Lives on one executor. After a failed write or sync the device is out of service: io_error.
// Format: docs/formats/units.md.
class SegmentStore {
  public:
    SegmentStore(DeviceState& device, SegmentStoreOptions options);
    ~SegmentStore();
    SegmentStore(const SegmentStore&) = delete;
    SegmentStore& operator=(const SegmentStore&) = delete;

    // Reads the unit table. Call once, first. Errors: io_error, unsupported.
    runtime::Task<Result<void>> load();

    // Takes the smallest power-of-two run that holds `bytes`; its entry is durable on return.
    // Errors: no_space, already_exists, invalid_argument (0 or > kSegmentBytesMax), io_error.
    runtime::Task<Result<SegmentPin>> create(SegmentId id, LineageId lineage, VolumeId volume,
                                             format::SegmentKind kind, uint64_t bytes,
                                             Purpose purpose, GroupId group = {});

    // Units for another copy of a segment, as `like` describes it. Only its pins hold it: nobody
    // finds it, and a restart knows nothing of it, before put_in_place(). Errors: no_space,
    // stopping.
    Result<SegmentPin> make_copy(const SegmentInfo& like, uint64_t bytes);
    // The copy, whole and synced here, is the segment from now on; durable on return. What was the
    // segment before (`bad`; empty: this device had none) goes when its last pin does. A crash
    // leaves the one or the other.
    // Errors: not_found (`bad` was removed meanwhile), already_exists (there is one, and `bad` is
    // empty), io_error. After an error the copy is not in place, and goes with its last pin.
    runtime::Task<Result<void>> put_in_place(SegmentPin copy, SegmentPin bad);

    // Writes the buffers one after the other from `offset`. Whole blocks, inside the segment.
    runtime::Task<Result<void>> write_vector(SegmentPin pin, uint64_t offset,
                                             std::vector<Buffer> from,
                                             runtime::Durability durability);
    // Fills `into`. Nothing is verified here: the caller knows the checksums. Errors: io_error
    // (named; counted for the device's health).
    runtime::Task<Result<void>> read(SegmentPin pin, uint64_t offset, Buffer into);
    runtime::Task<Result<void>> read_vector(SegmentPin pin, uint64_t offset,
                                            std::vector<Buffer> into);
    // "disk0 at offset 4096 (segment 1-1-1, 0 bytes in)": how messages name a place.
    std::string place_of(const SegmentPin& pin, uint64_t offset) const;
    // What was read there does not match its checksum or identity: counts it for the device's
    // health. Gives `corrupt` with the place in front of `what`.
    Error corrupt_at(const SegmentPin& pin, uint64_t offset, std::string_view what);
    // Makes every write that resolved before the call durable. Concurrent callers share one.
    runtime::Task<Result<void>> sync();

    // Gives back the upper half-runs that `bytes` does not need; durable on return.
    // Requires: no write in flight above `bytes`.
    runtime::Task<Result<void>> shrink(SegmentPin pin, uint64_t bytes);
    // The segment is gone for find() and list() at once. Its entry is cleared and its units are
    // freed before return, or by the last pin's end when it is pinned; a crash before that leaves
    // it, and its owner removes it again. Errors: not_found, io_error.
    runtime::Task<Result<void>> remove(SegmentId id);

    // Empty when this device has no such segment.
    SegmentPin find(SegmentId id);
    std::vector<SegmentInfo> list() const;
    // In the order of their ids; the work is that of the volume's segments alone.
    std::vector<SegmentInfo> list(VolumeId volume) const;
    // What they take on the device.
    uint64_t stored_bytes(VolumeId volume) const;
    // Whether segments of the volume that were removed are still in the table: a reader holds one,
    // or the table's write is on its way. Until then a power cut brings them back.
    bool is_leaving(VolumeId volume) const { return leaving_.contains(volume); }

    SegmentSpace space() const;
    // Whether create() of `bytes` for `purpose` would find units now.
    bool has_room(uint64_t bytes, Purpose purpose) const;

    // Writes zeros over free units that were never written, at most `bytes`, and notes it in the
    // table, so that later durable writes do not pay for converting a file's unwritten extents.
    // Returns the bytes written: 0 when nothing is left to do. For idle moments.
    runtime::Task<Result<uint64_t>> prezero(uint64_t bytes);

    // Waits for deferred removals. No pin may live any more.
    runtime::Task<void> close();

  private:
    friend class SegmentPin;
    using Entry = SegmentPin::Entry;
    struct TableBlock {
        uint64_t wanted = 0;  // versions of this 4 KiB of the table
        uint64_t durable = 0;
        bool is_writing = false;
    };

    uint64_t offset_of(const SegmentInfo& info) const;
    Error failed_read(const SegmentPin& pin, uint64_t offset, Error error);
    Result<void> check_access(const SegmentPin& pin, uint64_t offset, uint64_t bytes) const;
    Result<void> load_table();
    SegmentPin add_entry(const SegmentInfo& info);
    std::unique_ptr<Entry> take_entry(SegmentId id);
    void quarantine(uint32_t unit, const std::string& why);
    void set_entry(const SegmentInfo& info, format::UnitState state = format::UnitState::used);
    Result<uint32_t> take_units(const SegmentId& id, uint64_t bytes, Purpose purpose);
    bool load_entry(uint32_t unit, const format::UnitEntry& entry);
    Result<void> may_replace(const SegmentId& id, const SegmentPin& bad) const;
    void set_free(uint32_t first_unit, uint32_t unit_count);
    void free_run(uint32_t first_unit, uint32_t unit_count);
    std::optional<uint32_t> take_unwritten();
    runtime::Task<Result<void>> persist(uint32_t unit);
    runtime::Task<Result<void>> write_block(uint32_t block);
    runtime::Task<Result<void>> clear(std::unique_ptr<Entry> entry);
    runtime::Task<void> clear_in_background(std::unique_ptr<Entry> entry);
    void last_pin_gone(Entry* entry);
    void mark_written(uint32_t first_unit, uint32_t unit_count);

    DeviceState& device_;
    const SegmentStoreOptions options_;
    uint32_t reserve_units_ = 0;
    uint32_t quarantined_units_ = 0;
    uint32_t unwritten_free_units_ = 0;
    uint32_t prezero_next_ = 0;
    UnitAllocator allocator_;
    std::vector<format::UnitEntryBytes> table_;  // as it is to be on the disk
    std::vector<TableBlock> blocks_;
    std::vector<bool> written_;  // per unit: its extents are written ones
    std::unordered_map<SegmentId, std::unique_ptr<Entry>> segments_;
    std::unordered_map<VolumeId, std::set<SegmentId>> by_volume_;  // of segments_; none is empty
    std::unordered_map<VolumeId, uint32_t> leaving_;               // removed, still in the table
    std::unordered_map<Entry*, std::unique_ptr<Entry>> removed_;   // pinned still
    std::unordered_map<Entry*, std::unique_ptr<Entry>> copies_;    // not in place
    uint64_t sync_started_ = 0;
    uint64_t sync_done_ = 0;
    bool is_syncing_ = false;
    runtime::WaitList table_changed_;
    runtime::WaitList sync_changed_;
    runtime::Gate gate_;
};

}  // namespace peplos::media
