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
inline constexpr uint32_t kDomainNameBytesMax = 64;
// Members that come and go are beside the copies for a while.
inline constexpr uint32_t kGroupMembersMax = 8;
inline constexpr uint32_t kEnsembleMembersMax = 3;
inline constexpr uint32_t kVolumeLabelsMax = 64;
inline constexpr uint32_t kVolumeLabelBytesMax = 4096;
inline constexpr uint32_t kPathBytesMax = 4096;
inline constexpr uint32_t kMkfsOptionsBytesMax = 1024;

// Calls between nodes (room peer).
inline constexpr uint32_t kPeerBodyBytesMax = 1 * kMiB;
// A segment and what describes it.
inline constexpr uint32_t kPeerPayloadBytesMax = kSegmentBytesMax + 1 * kMiB;
// A received payload comes in buffers of at most this much.
inline constexpr uint32_t kPeerPayloadBufferBytes = 1 * kMiB;
// Of one channel: calls that wait or are under way, and the bytes of their requests.
inline constexpr uint32_t kPeerCallsMax = 4096;
inline constexpr uint64_t kPeerCallBytesMax = 128 * kMiB;
// Of one connection at a server: calls whose answer is not sent yet, and the bytes of requests and
// answers. Beyond that the server stops reading.
inline constexpr uint32_t kPeerServerCallsMax = 1024;
inline constexpr uint64_t kPeerServerBytesMax = 64 * kMiB;
inline constexpr uint32_t kPeerConnectionsMax = 1024;
// One node's, at a server: more than one while an old one is not known to be dead.
inline constexpr uint32_t kPeerConnectionsPerNodeMax = 4;
// Connections that have not said who they are.
inline constexpr uint32_t kPeerStrangersMax = 64;
inline constexpr uint32_t kPeerAddressesMax = 16;
inline constexpr uint32_t kPeerErrorBytesMax = 4 * kKiB;
inline constexpr Duration kPeerConnectTime = std::chrono::seconds(2);
inline constexpr Duration kPeerHandshakeTime = std::chrono::seconds(2);
// While calls are under way: silence after which the other end is asked for a sign of life, and
// after which the connection is given up.
inline constexpr Duration kPeerPingAfter = std::chrono::milliseconds(250);
inline constexpr Duration kPeerDeadAfter = std::chrono::milliseconds(1000);
// The same without calls under way.
inline constexpr Duration kPeerIdlePingAfter = std::chrono::seconds(2);
inline constexpr Duration kPeerIdleDeadAfter = std::chrono::seconds(6);
// Pauses between attempts to connect.
inline constexpr Duration kPeerBackoffMin = std::chrono::milliseconds(10);
inline constexpr Duration kPeerBackoffMax = std::chrono::seconds(1);

// Doors.
inline constexpr uint32_t kHttpBodyBytesMax = 1 * kMiB;
inline constexpr uint32_t kJsonDepthMax = 32;
inline constexpr uint32_t kHttpConnectionsMax = 256;

}  // namespace peplos::limits
