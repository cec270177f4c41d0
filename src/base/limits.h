#pragma once

#include <cstdint>

#include "base/units.h"

// Every bound of Peplos in one place. A queue that is full answers `busy`; none grows.
namespace peplos::limits {

// Volumes.
inline constexpr uint64_t kVolumeBytesMin = 1 * kMiB;
inline constexpr uint64_t kVolumeBytesMax = 64 * kTiB;
inline constexpr uint64_t kVolumeBytesDefault = 10 * kGiB;
inline constexpr uint32_t kVolumeCountMax = 100'000;
inline constexpr uint32_t kVolumeNameBytesMax = 128;

// I/O. One call covers at most this much; doors split what is larger.
inline constexpr uint32_t kIoBytesMax = 1 * kMiB;
// From here on a write's payload goes straight into a segment (DESIGN section 4).
inline constexpr uint32_t kLargeWriteBytes = 128 * kKiB;
inline constexpr uint32_t kVolumeIoCountMax = 1024;

// Journal.
inline constexpr uint32_t kFrameBytesMax = 512 * kKiB;
inline constexpr uint32_t kCommitPayloadBytesMax = 256 * kKiB;
inline constexpr uint32_t kRecordBodyBytesMax = 192 * kKiB;
// Twice what overlays hold by default: a restart reads all of it.
inline constexpr uint64_t kRingBytesDefault = 512 * kMiB;
inline constexpr uint64_t kRingBytesMin = 16 * kMiB;
inline constexpr uint32_t kRingQueueCountMax = 8192;
inline constexpr uint64_t kEnsembleTailBytesMax = 64 * kMiB;

// Segments.
inline constexpr uint64_t kSegmentBytesMax = 32 * kMiB;
inline constexpr uint64_t kSegmentBytesMin = 1 * kMiB;
inline constexpr uint64_t kSegmentUnitBytes = kSegmentBytesMin;

// Map: a leaf covers 4 MiB of LBA space.
inline constexpr uint32_t kLeafBlocks = 1024;
inline constexpr uint32_t kSegmentIndexMax = (1u << 26) - 1;

// Memory.
inline constexpr uint64_t kOverlayBytesDefault = 256 * kMiB;
inline constexpr uint64_t kLeafCacheBytesDefault = 256 * kMiB;

// Control store.
inline constexpr uint32_t kStoreKeyBytesMax = 512;
inline constexpr uint32_t kStoreValueBytesMax = 64 * kKiB;
inline constexpr uint32_t kStoreTransactionKeysMax = 64;
inline constexpr uint32_t kStoreListCountMax = 1000;
inline constexpr uint64_t kStoreListBytesMax = 4 * kMiB;
inline constexpr uint32_t kStoreMailboxCountMax = 1024;
inline constexpr uint32_t kStoreWatchCountMax = 256;
inline constexpr uint32_t kStoreWatchEventsMax = 256;
inline constexpr uint32_t kStoreHistoryEventsMax = 4096;
inline constexpr uint64_t kStoreHistoryBytesMax = 16 * kMiB;
inline constexpr uint32_t kNodeAddressesMax = 16;
inline constexpr uint32_t kEnsembleMembersMax = 3;
inline constexpr uint32_t kVolumeLabelsMax = 64;
inline constexpr uint32_t kVolumeLabelBytesMax = 4096;
inline constexpr uint32_t kPathBytesMax = 4096;
inline constexpr uint32_t kMkfsOptionsBytesMax = 1024;

// Doors.
inline constexpr uint32_t kHttpBodyBytesMax = 1 * kMiB;
inline constexpr uint32_t kJsonDepthMax = 32;
inline constexpr uint32_t kHttpConnectionsMax = 256;

}  // namespace peplos::limits
