#include "media/ring_scan.h"

#include <algorithm>

#include "base/fault.h"
#include "media/device.h"
#include "runtime/sync.h"

namespace peplos::media {
namespace {

constexpr uint64_t kPieceBytes = 1 * kMiB;
constexpr size_t kPiecesAhead = 8;
// A frame that begins in one piece and ends in the next is put together in front of the latter.
constexpr uint64_t kRestBytesMax = limits::kFrameBytesMax;
static_assert(kPieceBytes >= kRestBytesMax && kRestBytesMax % kBlockBytes == 0);
// With more unreadable blocks than this in one stretch it is the device that is broken.
constexpr uint64_t kStretchBytes = 8 * kMiB;
constexpr int64_t kStretchUnreadableMax = 256;

}  // namespace

struct RingScan::Piece {
    uint64_t begin = 0;  // in the ring
    uint64_t bytes = 0;
    Buffer buffer;                     // kRestBytesMax, then the piece
    std::vector<uint64_t> unreadable;  // of read_salvaging()
    Result<void> outcome;
    runtime::Event done;
};

// Shares the piece, never the scan: a scan that is destroyed leaves its reads to themselves.
Task<void> RingScan::read_piece(std::shared_ptr<Piece> piece, DeviceState* device,
                                uint64_t offset) {
    Buffer into = piece->buffer.slice(kRestBytesMax, piece->bytes);
    piece->outcome = co_await device->read_salvaging(offset, std::move(into), &piece->unreadable);
    piece->done.set();
}

std::shared_ptr<RingScan::Piece> RingScan::start_piece(uint64_t begin) {
    auto piece = std::make_shared<Piece>();
    piece->begin = begin;
    piece->bytes = std::min(kPieceBytes, ring_bytes_ - begin);
    if (spare_.empty()) {
        piece->buffer = Buffer::allocate(kRestBytesMax + kPieceBytes);
    } else {
        piece->buffer = std::move(spare_.back());
        spare_.pop_back();
    }
    runtime::spawn(device_.env.executor, read_piece(piece, &device_, ring_offset_ + begin));
    return piece;
}

Task<Result<void>> RingScan::read() {
    std::deque<std::shared_ptr<Piece>> ahead;
    Result<void> outcome = co_await read_pieces(ahead);
    // The device must outlive what is in flight.
    for (const std::shared_ptr<Piece>& piece : ahead)
        co_await piece->done.wait();
    co_return outcome;
}

Task<Result<void>> RingScan::read_pieces(std::deque<std::shared_ptr<Piece>>& ahead) {
    uint64_t begin_next = 0;
    uint64_t place = 0;
    Bytes rest;  // from `place` to the end of the piece before
    std::shared_ptr<Piece> before;
    while (place < ring_bytes_) {
        for (; ahead.size() < kPiecesAhead && begin_next < ring_bytes_; begin_next += kPieceBytes)
            ahead.push_back(start_piece(begin_next));
        CHECK(!ahead.empty(), "a frame does not reach beyond its ring");
        std::shared_ptr<Piece> piece = ahead.front();
        co_await piece->done.wait();
        ahead.pop_front();
        CO_TRY(piece->outcome);
        unreadable_.insert(unreadable_.end(), piece->unreadable.begin(), piece->unreadable.end());
        CO_TRY(check_stretch(ring_offset_ + round_down(piece->begin, kStretchBytes)));
        MutableBytes all = piece->buffer.bytes().first(kRestBytesMax + piece->bytes);
        std::ranges::copy(rest, all.data() + kRestBytesMax - rest.size());
        Bytes window = Bytes(all).subspan(kRestBytesMax - rest.size());
        CHECK(place + window.size() == piece->begin + piece->bytes);
        while (!window.empty()) {
            CO_TRY_ASSIGN(uint64_t advance, step(place, window));
            if (advance == 0) break;
            place += advance;
            window = window.subspan(advance);
        }
        rest = window;
        if (before != nullptr) spare_.push_back(std::move(before->buffer));
        before = std::move(piece);
    }
    co_return Result<void>{};
}

// Of the stretch that begins at this device offset, as far as it was read.
Result<void> RingScan::check_stretch(uint64_t begin) const {
    auto count =
        std::ranges::count_if(unreadable_, [begin](uint64_t offset) { return offset >= begin; });
    if (count <= kStretchUnreadableMax) return {};
    return fail(Code::io_error,
                "{} at offset {}: {} blocks of the journal cannot be read within {} MiB: the "
                "device is broken; replace it",
                device_.disk->name(), begin, count, kStretchBytes / kMiB);
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
                   header->log_offset % ring_bytes_ == place &&
                   header->bytes() <= ring_bytes_ - place &&
                   header->boot <= device_.superblock.boot;
    if (!is_ours) return kBlockBytes;
    if (header->bytes() > window.size()) return 0;
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
