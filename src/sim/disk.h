#pragma once

#include <array>
#include <functional>
#include <list>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <unordered_map>
#include <vector>

#include "runtime/disk.h"
#include "sim/random.h"

// Simulated disks: what a device may do within its contract, and what a broken one does.
namespace peplos::sim {

class DiskObserver;
class Process;
class World;
using runtime::Durability;
using runtime::Task;

inline constexpr uint32_t kSectorBytes = 512;

struct LatencyRange {
    Duration low;
    Duration high;
};

struct DiskProfile {
    LatencyRange read{std::chrono::microseconds(40), std::chrono::microseconds(160)};
    LatencyRange write{std::chrono::microseconds(10), std::chrono::microseconds(60)};
    LatencyRange durable_write{std::chrono::microseconds(20), std::chrono::microseconds(200)};
    LatencyRange sync{std::chrono::microseconds(100), std::chrono::microseconds(1000)};
};

// What becomes of unsynced sectors at a power loss.
enum class CrashMode : uint8_t {
    by_seed,  // one of those below
    lose,     // all are lost
    keep,     // all are kept
    sectors,  // each 512-byte sector by itself: any of the versions it had since it was last
              // durable
    pages,    // each 4 KiB page by itself, likewise
    prefix,   // the writes up to some moment are kept
};

struct CrashOptions {
    CrashMode mode = CrashMode::by_seed;
    // In `sectors`: so many of 1,000 sectors that change are cut inside, which real devices promise
    // not to do.
    uint32_t cut_sector_permille = 0;
};

enum class DiskOperation : uint8_t { read, write, sync, zero };

enum class DiskEffect : uint8_t {
    io_error,   // fails; a write may have reached the media in part
    no_space,   // a write fails with no_space and changes nothing
    lost,       // a write is acknowledged, and never happens
    misplaced,  // a write lands, and a read is taken, `delta` bytes further on
    garbled,    // one bit of each page touched is flipped on the way
    slow,       // takes `delay` longer
    stuck,      // never completes
};

// Applies to operations of one kind that touch [offset, offset + bytes).
struct DiskFault {
    DiskOperation operation;
    DiskEffect effect;
    uint64_t offset = 0;
    uint64_t bytes = UINT64_MAX;
    // The first `skip` operations that match are spared, the next `count` are hit.
    uint64_t skip = 0;
    uint64_t count = UINT64_MAX;
    int64_t delta = 0;
    Duration delay{};
};

struct DiskCounters {
    uint64_t reads = 0;
    uint64_t writes = 0;
    uint64_t syncs = 0;
    uint64_t zeros = 0;
    uint64_t bytes_read = 0;
    uint64_t bytes_written = 0;
};

// A device: sparse memory, and beside the newest content of a page every older content that a power
// loss could still bring back. It outlives the processes that use it.
//
// CHECKs what the Disk contract asks of callers: alignment, no two operations in flight over the
// same bytes unless both read, and buffers that do not change while they are written.
class DiskMedia {
  public:
    DiskMedia(World* world, std::string name, uint64_t bytes, DiskProfile profile);

    uint64_t size_bytes() const { return size_bytes_; }
    const std::string& name() const { return name_; }

    // Looks at what a read would return, or sets it durably, without time or faults. Any alignment.
    void peek(uint64_t offset, MutableBytes into) const;
    void poke(uint64_t offset, Bytes from);
    // Flips one bit of each byte of the range in every version.
    void corrupt(uint64_t offset, uint64_t bytes = 1);

    // All of what reads would return: byte offset -> page; pages of zeros are left out. The second
    // sets it, durably; requires: no process has the disk open.
    using Contents = std::map<uint64_t, std::array<std::byte, kBlockBytes>>;
    Contents contents() const;
    void set_contents(const Contents& contents);

    // Reads of these pages fail from now on, each until it is written again.
    void spoil(uint64_t offset, uint64_t bytes);
    // The n-th page that holds anything, `n` modulo their number, of those that are not in
    // [but, but + but_bytes); none: nothing is there.
    std::optional<uint64_t> find_page_in_use(uint64_t n, uint64_t but, uint64_t but_bytes) const;
    // All that is on it, so that another disk may stand in its place. Requires: nothing in flight.
    struct Platter;
    std::unique_ptr<Platter> exchange(std::unique_ptr<Platter> platter);

    // Where writes follow each other, so that a lost one is shown by those begun after it.
    void set_log(uint64_t offset, uint64_t bytes) {
        log_offset_ = offset;
        log_bytes_ = bytes;
    }
    std::pair<uint64_t, uint64_t> log() const { return {log_offset_, log_bytes_}; }
    // Where the newest write into the log went.
    std::optional<uint64_t> log_end() const { return log_end_; }
    // Makes good the lost durable writes that no reader could tell, after a crash now, from writes
    // that were cut off: those into the log behind which no other was begun, and all elsewhere,
    // which the log may not vouch for yet. Gives their number.
    size_t land_lost_end();

    void add_fault(DiskFault fault) { faults_.push_back(fault); }
    void clear_faults() { faults_.clear(); }
    const DiskCounters& counters() const { return counters_; }
    // Pages with content that a power loss may take back.
    size_t unsynced_page_count() const { return history_.size(); }
    size_t in_flight_count() const { return in_flight_.size(); }
    // Pages that hold anything: the memory this disk costs.
    size_t page_count() const { return pages_.size(); }
    // Null: nobody. It outlives its observation.
    void set_observer(DiskObserver* observer) { observer_ = observer; }
    void set_profile(DiskProfile profile) { profile_ = profile; }

    // ---- for World and the Disk seam ----

    struct Request {
        DiskOperation operation;
        Durability durability = Durability::volatile_;
        uint64_t offset = 0;
        uint64_t bytes = 0;
        std::vector<Buffer> buffers;
    };
    using Handler = std::move_only_function<void(Result<void>)>;

    // Null when it is now held by `process`, else the holder.
    Process* lock(Process* process);
    void unlock(Process* process);
    bool is_open_by(const Process* process) const { return holder_ == process; }
    // It was the last to open it.
    bool was_used_by(const Process* process) const { return last_holder_ == process; }
    void submit(Process* process, Request request, Handler handler);
    // The process is gone: what it had in flight lands in part or not at all.
    void drop_in_flight(Process* process, Random& random);
    void lose_power(Random& random, CrashOptions options);

  private:
    using Page = std::array<std::byte, kBlockBytes>;
    // The content of a page before write `sequence`; null for zeros.
    struct Version {
        uint64_t sequence;
        std::unique_ptr<Page> content;
    };
    struct InFlight {
        uint64_t id;
        Process* process;
        Request request;
        Handler handler;
        uint64_t sequence_at_submit;
        Time submitted{};
        uint32_t crc;
        std::vector<DiskFault> faults;
    };

    struct LostWrite {
        Time acknowledged;
        bool is_in_log;
        std::vector<std::pair<uint64_t, std::unique_ptr<Page>>> pages;  // not written again since
    };

    void lose_write(const Request& request);
    bool is_in_log(const Request& request) const;
    bool is_unreadable(uint64_t offset, uint64_t bytes) const;
    std::vector<DiskFault> faults_for(const Request& request);
    void check_contract(const Request& request) const;
    Duration latency_of(const Request& request, const std::vector<DiskFault>& faults);
    void complete(uint64_t id);
    Result<void> carry_out(InFlight& operation);
    Result<void> carry_out_write(InFlight& operation, uint64_t offset);
    void carry_out_read(InFlight& operation, uint64_t offset);
    void carry_out_sync(uint64_t sequence);
    void zero_pages(uint64_t offset, uint64_t bytes, Durability durability);
    void store_page(uint64_t page, const std::byte* content, Durability durability);
    // Stores only the sectors whose bit is set in `mask`.
    void store_sectors(uint64_t page, const std::byte* content, uint8_t mask);
    void land_in_part(const Request& request, Random& random);
    void settle_page(uint64_t page, std::vector<Version>& versions, CrashMode mode, uint64_t cutoff,
                     Random& random, CrashOptions options);
    const Page* find_page(uint64_t page) const;

    World* world_;
    std::string name_;
    uint64_t size_bytes_;
    DiskProfile profile_;
    Random random_;
    Process* holder_ = nullptr;
    Process* last_holder_ = nullptr;
    std::unordered_map<uint64_t, std::unique_ptr<Page>> pages_;
    std::unordered_map<uint64_t, std::vector<Version>> history_;
    std::set<uint64_t> unreadable_;  // pages
    uint64_t log_offset_ = 0;
    uint64_t log_bytes_ = 0;
    std::optional<uint64_t> log_end_;
    Time log_begun_{};  // when the newest landed write into the log was submitted
    std::vector<LostWrite> lost_;
    uint64_t sequence_ = 0;
    std::list<InFlight> in_flight_;
    uint64_t operation_next_ = 1;
    std::vector<DiskFault> faults_;
    DiskCounters counters_;
    DiskObserver* observer_ = nullptr;
};

struct DiskMedia::Platter {
    std::unordered_map<uint64_t, std::unique_ptr<Page>> pages;
    std::unordered_map<uint64_t, std::vector<Version>> history;
    std::set<uint64_t> unreadable;
};

// Is told of every operation, in the order of events.
class DiskObserver {
  public:
    virtual ~DiskObserver() = default;
    virtual void submitted(uint64_t id, const DiskMedia::Request& request) = 0;
    virtual void completed(uint64_t id, bool succeeded) = 0;
};

// The Disk seam of one process over a device.
class SimDisk final : public runtime::Disk {
  public:
    SimDisk(Process* process, DiskMedia* media) : process_(process), media_(media) {}
    SimDisk(const SimDisk&) = delete;
    SimDisk& operator=(const SimDisk&) = delete;
    ~SimDisk() override { media_->unlock(process_); }

    uint64_t size_bytes() const override { return media_->size_bytes(); }
    const std::string& name() const override { return media_->name(); }
    Task<Result<void>> read(uint64_t offset, Buffer into) override;
    Task<Result<void>> read_vector(uint64_t offset, std::vector<Buffer> into) override;
    Task<Result<void>> write(uint64_t offset, Buffer from, Durability durability) override;
    Task<Result<void>> write_vector(uint64_t offset, std::vector<Buffer> from,
                                    Durability durability) override;
    Task<Result<void>> sync() override;
    Task<Result<void>> zero(uint64_t offset, uint64_t bytes) override;

  private:
    Task<Result<void>> perform(DiskMedia::Request request);

    Process* process_;
    DiskMedia* media_;
};

}  // namespace peplos::sim
