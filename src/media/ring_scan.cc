#include "media/ring_scan.h"

#include <algorithm>

#include "base/fault.h"
#include "media/device.h"

namespace peplos::media {
namespace {

constexpr uint64_t kWindowBytes = 8 * kMiB;
static_assert(kWindowBytes > limits::kFrameBytesMax);

}  // namespace

Task<Result<void>> RingScan::read() {
    Buffer window = Buffer::allocate(std::min(kWindowBytes, ring_bytes_));
    uint64_t place = 0;
    while (place < ring_bytes_) {
        uint64_t begin = place;
        uint64_t bytes = std::min<uint64_t>(window.size(), ring_bytes_ - begin);
        Buffer into = window.slice(0, bytes);
        CO_TRY(co_await device_.read_salvaging(ring_offset_ + begin, into, &unreadable_));
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
        broken_.push_back({header->sequence, place, header->bytes()});
    }
    return header->bytes();
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

// A torn frame that an earlier boot gave up may have survived where its successor of the same
// sequence did not overwrite it: the later boot's word counts.
void RingScan::drop_repeats() {
    std::ranges::sort(frames_, [](const Frame& a, const Frame& b) {
        return std::pair(a.header.sequence, b.header.boot) <
               std::pair(b.header.sequence, a.header.boot);
    });
    auto repeats = std::ranges::unique(frames_, [](const Frame& a, const Frame& b) {
        return a.header.sequence == b.header.sequence;
    });
    frames_.erase(repeats.begin(), repeats.end());
}

bool RingScan::is_unreadable(uint64_t place, uint64_t bytes) const {
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

void RingScan::drop_torn() {
    if (!frames_.empty() && !frames_.back().payload_is_good) {
        const format::FrameHeader& header = frames_.back().header;
        uint64_t place = header.log_offset % ring_bytes_;
        if (is_unreadable(place, header.bytes())) return;  // damaged, and its records say whose
        PROBE("media.ring.torn_payload");
        torn_tail_ = true;
        torn_tail_offset_ = ring_offset_ + place;
        frames_.pop_back();
        return;
    }
    look_behind_newest();
}

void RingScan::look_behind_newest() {
    uint64_t next = frames_.empty() ? 1 : frames_.back().header.sequence + 1;
    for (const Broken& broken : broken_) {
        if (broken.sequence != next) continue;
        if (is_unreadable(broken.place, broken.bytes)) {
            lost_end_ = {next, broken.place};
        } else {
            PROBE("media.ring.torn_metadata");
            torn_tail_ = true;
            torn_tail_offset_ = ring_offset_ + broken.place;
        }
        return;
    }
    if (unreadable_.empty() || is_closed()) return;
    // The next frame began right behind the newest, or at the start where it did not fit.
    uint64_t head =
        frames_.empty() ? 0 : frames_.back().header.log_offset + frames_.back().header.bytes();
    uint64_t place = head % ring_bytes_;
    if (is_unreadable(place, kBlockBytes)) {
        lost_end_ = {next, place};
    } else if (ring_bytes_ - place < limits::kFrameBytesMax && is_unreadable(0, kBlockBytes)) {
        lost_end_ = {next, 0};
    }
}

Result<void> RingScan::resolve() {
    drop_repeats();
    drop_torn();
    if (frames_.empty()) return lost_end_ ? find_lost() : Result<void>{};
    tail_sequence_ = frames_.back().header.tail_sequence;
    tail_log_offset_ = frames_.back().header.tail_log_offset;
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
            header.log_offset > log_offset && header.log_offset - tail_log_offset_ <= ring_bytes_;
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
        if (sequence + 1 == end_sequence) {
            lost.witnesses_known = next->header.witnesses_are_complete;
            lost.witnesses = next->header.witnesses;
        }
        lost.position_in_order = records_before;
        lost_.push_back(std::move(lost));
    }
}

}  // namespace peplos::media
