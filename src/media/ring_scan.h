#pragma once

#include <optional>
#include <vector>

#include "format/frame.h"
#include "media/ring.h"

namespace peplos::media {

// Finds the frames of a ring by reading all of it, and decides what they mean.
//
// Order comes from sequence numbers, never from places. Each frame says up to where all were
// durable when it began: up to the highest such sequence (settled) a frame that cannot be read is
// lost (corrupt). Behind it several were in flight, and any of them may be torn: the first torn one
// ends the log, whole ones behind it were never acknowledged and go too. Blocks that the device
// fails to read are no tear: what they held counts as lost where it may have been needed, and does
// not matter elsewhere.
class RingScan {
  public:
    struct Frame {
        format::FrameHeader header;
        bool payload_is_good = true;  // of every record
        std::vector<RecoveredRecord> records;
    };

    RingScan(DeviceState& device, uint64_t ring_offset, uint64_t ring_bytes)
        : device_(device), ring_offset_(ring_offset), ring_bytes_(ring_bytes) {}

    // Errors: io_error, unsupported.
    Task<Result<void>> read();
    // Orders the frames from tail to head and fills in what is lost or torn.
    // Errors: corrupt (frames that contradict each other).
    Result<void> resolve();
    // After resolve(), whatever it said: reads again what it hangs on (the end of the log, and what
    // is broken or missing). False: the device gave other bytes this time, so nothing is proven and
    // all is to be scanned anew. Errors: io_error.
    Task<Result<bool>> reads_the_same();

    // After resolve(): tail first. Sequences may have holes: those frames are in lost().
    std::vector<Frame>& frames() { return frames_; }
    const std::vector<LostFrame>& lost() const { return lost_; }
    // Up to here every frame was durable, whether it can be read now or not.
    uint64_t settled_sequence() const { return settled_sequence_; }
    // Of the frame behind the newest that the device cannot read; 0: there is none.
    uint64_t lost_end_sequence() const { return lost_end_ ? lost_end_->sequence : 0; }
    uint64_t tail_sequence() const { return tail_sequence_; }
    uint64_t tail_log_offset() const { return tail_log_offset_; }
    bool torn_tail() const { return torn_tail_; }
    uint64_t torn_tail_offset() const { return torn_tail_offset_; }
    uint64_t frames_seen() const { return frames_seen_; }

  private:
    // A header that holds over an area that does not.
    struct Broken {
        uint64_t sequence;
        Boot boot;
        uint64_t place;
        uint64_t bytes;
    };
    // A frame that followed the newest one, or may have, in blocks that the device cannot read: it
    // may have been acknowledged.
    struct LostEnd {
        uint64_t sequence;
        uint64_t place;
    };

    // What was read at once, by its place.
    struct Window {
        uint64_t place;
        uint64_t bytes;
        uint32_t crc;
    };

    bool is_doubtful(const Window& window) const;
    // Looks at `place`; returns how far to go on, at least one block. `window` starts there.
    Result<uint64_t> step(uint64_t place, Bytes window);
    Result<void> add_frame(const format::FrameHeader& header, Bytes frame);
    void drop_given_up();
    void drop_torn();
    void end_at(size_t index, uint64_t sequence);
    // Where the frame of `sequence` lies or would lie, if nothing whole is there.
    struct Missing {
        uint64_t place = 0;
        bool has_begun = false;      // its header is there
        bool is_unreadable = false;  // the device fails to read it: it may have been acknowledged
    };
    Missing look_behind_gap(const format::FrameHeader& before) const;
    Missing look_at_missing(const Frame* before, uint64_t sequence) const;
    bool is_unreadable(uint64_t place, uint64_t bytes) const;
    bool is_closed() const;
    Result<void> find_lost();
    void add_lost(uint64_t first_sequence, uint64_t end_sequence, uint64_t log_offset,
                  const Frame* next, uint64_t records_before);

    DeviceState& device_;
    const uint64_t ring_offset_;
    const uint64_t ring_bytes_;
    std::vector<Window> windows_;
    std::vector<Frame> frames_;
    std::vector<Broken> broken_;
    std::vector<LostFrame> lost_;
    std::vector<uint64_t> unreadable_;  // places of blocks that the device cannot read
    std::optional<LostEnd> lost_end_;
    uint64_t settled_sequence_ = 0;
    std::optional<Frame> torn_;  // the first that was dropped, when its header holds
    uint64_t tail_sequence_ = 1;
    uint64_t tail_log_offset_ = 0;
    bool torn_tail_ = false;
    uint64_t torn_tail_offset_ = 0;
    uint64_t frames_seen_ = 0;
};

}  // namespace peplos::media
