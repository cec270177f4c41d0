#pragma once

#include <string>
#include <vector>

#include "format/map_page.h"
#include "format/segment_layout.h"
#include "format/superblock.h"
#include "volume/segment_writer.h"
#include "volume/volume_test_rig.h"

// What tests that damage a volume's device share: where things lie on it, how they are spoilt, and
// what comes of it.
namespace peplos::volume {

// ---- places ----

inline uint64_t units_offset(Rig& rig) {
    Buffer block = Buffer::allocate(format::kSuperblockBytes);
    rig.world.disk(Rig::kPath).peek(0, block.bytes());
    auto superblock = format::decode_superblock(std::as_const(block).bytes());
    CHECK(superblock);
    return superblock->units_offset;
}

// Where a segment begins on the disk.
inline uint64_t device_offset(Rig& rig, const SegmentId& id) {
    media::SegmentPin pin = rig.device->segments().find(id);
    CHECK(pin);
    return units_offset(rig) + pin.info().first_unit * limits::kSegmentUnitBytes;
}

// Requires: the volume has one segment of that kind.
inline SegmentView only_segment(Rig& rig, format::SegmentKind kind) {
    std::optional<SegmentView> found;
    for (const SegmentView& segment : rig.volume->segments()) {
        if (segment.kind != kind) continue;
        EXPECT_FALSE(found.has_value());
        found = segment;
    }
    CHECK(found.has_value());
    return *found;
}

// Of a sealed segment's index, from where the segment begins.
inline uint64_t index_offset(Rig& rig, const SegmentView& segment) {
    SegmentHandle handle{rig.device->segments().find(segment.id), &rig.device->segments()};
    auto index = rig.world.run(read_index(handle));
    CHECK(index);
    return index->footer.index_offset();
}

// Where the newest page of a kind lies on the disk.
inline uint64_t page_offset(Rig& rig, format::PageKind kind) {
    uint64_t at_newest = 0, sequence = 0;
    for (const media::SegmentInfo& info : rig.device->segments().list(Rig::kVolume)) {
        if (info.kind != format::SegmentKind::map) continue;
        uint64_t begin = device_offset(rig, info.id);
        Buffer bytes = Buffer::allocate(info.bytes());
        rig.world.disk(Rig::kPath).peek(begin, bytes.bytes());
        for (uint64_t at = format::kSegmentDataOffset; at < bytes.size();
             at += format::kPlaceUnitBytes) {
            auto page = format::outline_page(std::as_const(bytes).bytes().subspan(at));
            if (!page || page->identity.kind != kind || page->identity.sequence < sequence)
                continue;
            sequence = page->identity.sequence;
            at_newest = begin + at;
        }
    }
    CHECK(at_newest != 0);
    return at_newest;
}

// Where the frame that comes next would begin, if it goes out now.
inline uint64_t frame_offset(Rig& rig, uint64_t sequence) {
    return rig.device->ring().device_offset_of({sequence, 0, 0});
}

// ---- damage ----

inline void make_unreadable(Rig& rig, uint64_t offset, uint64_t bytes = kBlockBytes) {
    rig.world.disk(Rig::kPath)
        .add_fault({.operation = sim::DiskOperation::read,
                    .effect = sim::DiskEffect::io_error,
                    .offset = offset,
                    .bytes = bytes});
}

// ---- what comes of it ----

inline LossReport recover_ok(Rig& rig, replica::OnLoss on_loss) {
    auto report = rig.world.run(rig.recover_volume(on_loss));
    EXPECT_TRUE(report) << report.error().text();
    return report ? *report : LossReport{};
}

// "" when the block can be read.
inline std::string read_error(Rig& rig, uint64_t offset) {
    Buffer into = Buffer::allocate(kBlockBytes);
    auto outcome = rig.world.run(rig.volume->read(offset, into));
    return outcome ? "" : outcome.error().text();
}

// Every block is what the model says, or an error says that it is lost; gives how many are.
inline uint64_t expect_all_but_lost(Rig& rig) {
    uint64_t lost = 0;
    for (uint64_t begin = 0; begin < rig.volume->size_bytes(); begin += kMiB) {
        if (rig.world.run(rig.check(begin, kMiB)).empty()) continue;
        for (uint64_t at = begin; at < begin + kMiB; at += kBlockBytes) {
            std::string wrong = rig.world.run(rig.check(at, kBlockBytes));
            if (wrong.empty()) continue;
            EXPECT_NE(wrong.find("is lost"), std::string::npos) << wrong;
            ++lost;
        }
    }
    return lost;
}

}  // namespace peplos::volume
