#include "media/ring_scan.h"

#include <algorithm>

#include "base/crc32c.h"
#include "base/fault.h"
#include "media/device.h"

namespace peplos::media {
namespace {

constexpr uint64_t kWindowBytes = 8 * kMiB;
static_assert(kWindowBytes > limits::kFrameBytesMax);
// What frames of which nothing can be read may take, those in flight and the one before them.
constexpr uint64_t kGapBytesMax = 4 * limits::kFrameBytesMax;

}  // namespace

Task<Result<void>> RingScan::read() {
    Buffer window = Buffer::allocate(std::min(kWindowBytes, ring_bytes_));
    uint64_t place = 0;
    while (place < ring_bytes_) {
        uint64_t begin = place;
        uint64_t bytes = std::min<uint64_t>(window.size(), ring_bytes_ - begin);
        Buffer into = window.slice(0, bytes);
        CO_TRY(co_await device_.read_salvaging(ring_offset_ + begin, into, &unreadable_));
        windows_.push_back({begin, bytes, crc32c(std::as_const(into).bytes())});
        bool is_last = begin + bytes == ring_bytes_;
        // A frame that begins near the window's end is read again with the next window.
        while (place < begin + bytes &&
               (is_last || begin + bytes - place >= limits::kFrameBytesMax)) {
            auto advance = step(
                place, std::as_const(window).bytes().subspan(place - begin, begin + bytes - place));
            if (!advance) co_return fail(std::move(advance).error());
            place += *advance;
        }
    }
    co_return Result<void>{};
}

Task<Result<bool>> RingScan::reads_the_same() {
    Buffer buffer = Buffer::allocate(std::min(kWindowBytes, ring_bytes_));
    for (const Window& window : windows_) {
        if (!is_doubtful(window)) continue;
        Buffer into = buffer.slice(0, window.bytes);
        CO_TRY(co_await device_.read_salvaging(ring_offset_ + window.place, into, nullptr));
        if (crc32c(std::as_const(into).bytes()) != window.crc) co_return false;
    }
    co_return true;
}

// Frames that are whole are proven by their checksums. What is missing is proven by nothing but the
// bytes of the place where it would be.
bool RingScan::is_doubtful(const Window& window) const {
    auto touches = [&window](uint64_t place, uint64_t bytes) {
        return place < window.place + window.bytes && place + bytes > window.place;
    };
    if (!lost_.empty() || frames_.empty()) return true;
    const format::FrameHeader& newest = frames_.back().header;
    uint64_t head = (newest.log_offset + newest.bytes()) % ring_bytes_;
    if (touches(head, kGapBytesMax)) return true;
    // The next frame begins anew where it does not fit before the ring's end.
    if (head + kGapBytesMax > ring_bytes_ && touches(0, kGapBytesMax)) return true;
    bool is_hurt = std::ranges::any_of(
        broken_, [&](const Broken& broken) { return touches(broken.place, broken.bytes); });
    is_hurt |= std::ranges::any_of(
        unreadable_, [&](uint64_t offset) { return touches(offset - ring_offset_, kBlockBytes); });
    return is_hurt || std::ranges::any_of(frames_, [&](const Frame& frame) {
               return !frame.payload_is_good &&
                      touches(frame.header.log_offset % ring_bytes_, frame.header.bytes());
           });
}

Result<uint64_t> RingScan::step(uint64_t place, Bytes window) {
    if (!format::has_frame_magic(window)) return kBlockBytes;
    auto header = format::decode_frame_header(window.first(kBlockBytes));
    if (!header) {
        if (header.error().code() == Code::unsupported)
            return fail(std::move(header).error().within(
                fmt::format("{} at offset {}", device_.disk->name(), ring_offset_ + place)));
        return kBlockBytes;
    }
    // Whatever is not this ring's frame in its own place is a copy or older than the device.
    bool is_ours = header->incarnation == device_.superblock.incarnation &&
                   header->log_offset % ring_bytes_ == place && header->bytes() <= window.size() &&
                   header->boot <= device_.superblock.boot;
    if (!is_ours) return kBlockBytes;
    ++frames_seen_;
    auto added = add_frame(*header, window.first(header->bytes()));
    if (!added) {
        if (added.error().code() == Code::unsupported)
            return fail(std::move(added).error().within(
                fmt::format("{} at offset {}", device_.disk->name(), ring_offset_ + place)));
        broken_.push_back({header->sequence, header->boot, place, header->bytes()});
        settled_sequence_ = std::max(settled_sequence_, header->settled_sequence);
    }
    // One that is not whole may be of an earlier lap, and newer ones lie where it went on: where a
    // write between was lost, only they tell that it was.
    bool is_whole = added && frames_.back().payload_is_good;
    return is_whole ? header->bytes() : kBlockBytes;
}

Result<void> RingScan::add_frame(const format::FrameHeader& outline, Bytes bytes) {
    TRY_ASSIGN(format::FrameHeader header,
               format::decode_frame(bytes.first(outline.metadata_bytes)));
    Frame frame;
    uint64_t offset = header.records_offset();
    uint64_t payload_offset = header.metadata_bytes;
    frame.records.reserve(
        std::min<size_t>(header.record_count, header.metadata_bytes / format::kRecordHeaderBytes));
    for (uint32_t i = 0; i < header.record_count; ++i) {
        TRY_ASSIGN(format::DecodedRecord decoded,
                   format::decode_record(bytes.first(header.metadata_bytes).subspan(offset)));
        RecoveredRecord& out = frame.records.emplace_back();
        out.record = std::move(decoded.record);
        out.position = {header.sequence, static_cast<uint32_t>(offset),
                        static_cast<uint32_t>(payload_offset)};
        uint64_t payload_bytes = out.record.payload_bytes();
        if (payload_bytes > bytes.size() - payload_offset)
            return fail(Code::corrupt, "a journal frame with more payload than it says");
        out.payload_is_good =
            format::verify_payload(out.record, bytes.subspan(payload_offset, payload_bytes))
                .has_value();
        frame.payload_is_good = frame.payload_is_good && out.payload_is_good;
        offset += decoded.encoded_bytes;
        payload_offset += payload_bytes;
    }
    frame.header = std::move(header);
    frames_.push_back(std::move(frame));
    return {};
}

// Frames that a recovery gave up may have survived where those written since did not overwrite
// them. The first frame of the boot that gave them up has a sequence not above theirs, and boots
// never go down along the log: so whatever follows a frame of a later boot is given up.
void RingScan::drop_given_up() {
    std::ranges::sort(frames_, [](const Frame& a, const Frame& b) {
        return std::pair(a.header.sequence, b.header.boot) <
               std::pair(b.header.sequence, a.header.boot);
    });
    Boot newest_boot;
    uint64_t last_sequence = 0;
    std::erase_if(frames_, [&](const Frame& frame) {
        const format::FrameHeader& header = frame.header;
        bool is_given_up = header.boot < newest_boot && !PLANTED("recovery.keeps_given_up");
        if (is_given_up || header.sequence == last_sequence) {
            PROBE("media.ring.given_up");
            return true;
        }
        newest_boot = header.boot;
        last_sequence = header.sequence;
        return false;
    });
}

bool RingScan::is_unreadable(uint64_t place, uint64_t bytes) const {
    if (PLANTED("recovery.unreadable_is_empty")) return false;
    return std::ranges::any_of(unreadable_, [&](uint64_t offset) {
        return offset >= ring_offset_ + place && offset < ring_offset_ + place + bytes;
    });
}

// The newest frame is the one that ends a boot: without records, and not the boot's first.
bool RingScan::is_closed() const {
    if (frames_.empty() || frames_.back().header.record_count != 0) return false;
    return std::ranges::any_of(frames_, [this](const Frame& frame) {
        return frame.header.boot == frames_.back().header.boot &&
               frame.header.sequence != frames_.back().header.sequence;
    });
}

// Follows the frames that were in flight up to the first torn one.
void RingScan::drop_torn() {
    for (const Frame& frame : frames_)
        settled_sequence_ = std::max(settled_sequence_, frame.header.settled_sequence);
    size_t i = 0;
    while (i < frames_.size() && frames_[i].header.sequence <= settled_sequence_)
        ++i;
    uint64_t due = settled_sequence_ + 1;
    for (; i < frames_.size(); ++i) {
        const format::FrameHeader& header = frames_[i].header;
        if (header.sequence == due + 1) {
            // One that the device cannot read may have been acknowledged, and so what follows it.
            const Frame* before = i == 0 ? nullptr : &frames_[i - 1];
            if (!look_at_missing(before, due).is_unreadable) break;
        } else if (header.sequence != due) {
            break;
        }
        // Where the device fails to read it, it is damaged, and its records say whose.
        uint64_t place = header.log_offset % ring_bytes_;
        if (!frames_[i].payload_is_good && !is_unreadable(place, header.bytes())) break;
        due = header.sequence + 1;
    }
    end_at(i, due);
}

// The log ends before frames_[index]; the frame of `sequence` comes next.
void RingScan::end_at(size_t index, uint64_t sequence) {
    if (index < frames_.size() && frames_[index].header.sequence == sequence) {
        PROBE("media.ring.torn_payload");
        torn_tail_ = true;
        torn_tail_offset_ = ring_offset_ + frames_[index].header.log_offset % ring_bytes_;
        torn_ = std::move(frames_[index]);
    } else {
        const bool is_behind_gap = index < frames_.size();
        const Frame* before = index == 0 ? nullptr : &frames_[index - 1];
        Missing missing = look_at_missing(before, sequence);
        bool is_closed_log = !is_behind_gap && is_closed();
        if (missing.is_unreadable && !is_closed_log) {
            lost_end_ = {sequence, missing.place};
        } else if (missing.has_begun || is_behind_gap) {
            PROBE("media.ring.torn_metadata");
            torn_tail_ = true;
            torn_tail_offset_ = ring_offset_ + missing.place;
        }
    }
    const size_t torn_count = torn_ ? 1 : 0;
    if (index + torn_count < frames_.size()) PROBE("media.ring.whole_behind_torn");
    frames_.erase(frames_.begin() + static_cast<ptrdiff_t>(index), frames_.end());
}

RingScan::Missing RingScan::look_at_missing(const Frame* before, uint64_t sequence) const {
    for (const Broken& broken : broken_) {
        bool is_given_up = before != nullptr && broken.boot < before->header.boot;
        if (broken.sequence != sequence || is_given_up) continue;
        return {broken.place, true, is_unreadable(broken.place, broken.bytes)};
    }
    if (before != nullptr && before->header.sequence + 1 != sequence) {
        // Where it began is not known; what cannot be read behind the last that is whole may be it.
        return look_behind_gap(before->header);
    }
    // It began right behind the one before, or at the start where it did not fit.
    uint64_t head = before == nullptr ? 0 : before->header.log_offset + before->header.bytes();
    uint64_t place = head % ring_bytes_;
    if (is_unreadable(place, kBlockBytes)) return {place, false, true};
    bool may_wrap = ring_bytes_ - place < limits::kFrameBytesMax;
    if (may_wrap && is_unreadable(0, kBlockBytes)) return {0, false, true};
    return {place, false, false};
}

RingScan::Missing RingScan::look_behind_gap(const format::FrameHeader& before) const {
    uint64_t head = before.log_offset + before.bytes();
    for (uint64_t offset : unreadable_) {
        uint64_t behind = (offset - ring_offset_ + ring_bytes_ - head % ring_bytes_) % ring_bytes_;
        if (behind < kGapBytesMax) return {offset - ring_offset_, false, true};
    }
    return {};
}

Result<void> RingScan::resolve() {
    drop_given_up();
    drop_torn();
    const Frame* newest = frames_.empty() ? nullptr : &frames_.back();
    if (newest == nullptr && torn_) newest = &*torn_;
    // Without either, what was settled is lost, and what it held is not known.
    tail_sequence_ = std::max<uint64_t>(settled_sequence_, 1);
    if (newest != nullptr) {
        tail_sequence_ = newest->header.tail_sequence;
        tail_log_offset_ = newest->header.tail_log_offset;
    }
    std::erase_if(frames_,
                  [this](const Frame& frame) { return frame.header.sequence < tail_sequence_; });
    return find_lost();
}

Result<void> RingScan::find_lost() {
    uint64_t sequence = tail_sequence_;
    uint64_t log_offset = tail_log_offset_;
    uint64_t records_before = 0;
    for (const Frame& frame : frames_) {
        const format::FrameHeader& header = frame.header;
        if (header.sequence != sequence)
            add_lost(sequence, header.sequence, log_offset, &frame, records_before);
        bool is_adjacent = header.log_offset == log_offset ||
                           header.log_offset == round_up(log_offset, ring_bytes_);
        bool is_behind =
            header.log_offset >= log_offset && header.log_offset - tail_log_offset_ <= ring_bytes_;
        if (header.sequence == sequence ? !is_adjacent : !is_behind) {
            return fail(Code::corrupt,
                        "{}: the journal contradicts itself: frame {} lies at log offset {} where "
                        "{} is due; this device must be rebuilt",
                        device_.disk->name(), header.sequence, header.log_offset, log_offset);
        }
        records_before += frame.records.size();
        sequence = header.sequence + 1;
        log_offset = header.log_offset + header.bytes();
    }
    // What followed says that these were durable, and was itself torn.
    if (sequence <= settled_sequence_) {
        bool is_next = torn_ && torn_->header.sequence == settled_sequence_ + 1;
        add_lost(sequence, settled_sequence_ + 1, log_offset, is_next ? &*torn_ : nullptr,
                 records_before);
    }
    if (lost_end_) {
        PROBE("media.ring.lost_end");
        LostFrame lost;
        lost.sequence = lost_end_->sequence;
        lost.device_offset = ring_offset_ + lost_end_->place;
        lost.position_in_order = records_before;
        lost_.push_back(std::move(lost));
    }
    return {};
}

void RingScan::add_lost(uint64_t first_sequence, uint64_t end_sequence, uint64_t log_offset,
                        const Frame* next, uint64_t records_before) {
    for (uint64_t sequence = first_sequence; sequence < end_sequence; ++sequence) {
        LostFrame lost;
        lost.sequence = sequence;
        lost.device_offset = ring_offset_ + log_offset % ring_bytes_;
        for (const Broken& broken : broken_) {
            if (broken.sequence == sequence) lost.device_offset = ring_offset_ + broken.place;
        }
        if (sequence + 1 == end_sequence && next != nullptr) {
            lost.witnesses_known = next->header.witnesses_are_complete;
            lost.witnesses = next->header.witnesses;
        }
        lost.position_in_order = records_before;
        lost_.push_back(std::move(lost));
    }
}

}  // namespace peplos::media
