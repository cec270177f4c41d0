#include "swarm/history.h"

#include <gtest/gtest.h>

namespace peplos::swarm {
namespace {

constexpr uint64_t kBytes = 4096;

// What a device that holds `version` everywhere would answer; 0: zeros.
Buffer content(const History& history, uint64_t offset, uint64_t bytes, uint32_t version) {
    Buffer out = Buffer::zeroed(bytes);
    for (uint64_t i = 0; version != 0 && i < bytes; i += History::kSector) {
        history.fill(out.bytes().subspan(i, History::kSector), offset + i, version);
    }
    return out;
}

std::string read(History& history, uint32_t version) {
    Moment began = history.begin_read();
    Buffer answer = content(history, 0, History::kSector, version);
    return history.end_read(0, answer.bytes(), began);
}

uint32_t write(History& history, bool zeros = false) {
    uint32_t version = history.begin_write(0, History::kSector, zeros);
    history.end_write(0, History::kSector, version);
    return version;
}

TEST(History, WhatWasWrittenLastIsRead) {
    History history(1, kBytes);
    EXPECT_EQ(read(history, 0), "");
    uint32_t first = write(history);
    EXPECT_EQ(read(history, first), "");
    write(history, true);
    EXPECT_EQ(read(history, 0), "");
    EXPECT_EQ(history.settle(), "");
}

TEST(History, AStaleAnswerIsNoticed) {
    History history(1, kBytes);
    uint32_t first = write(history);
    write(history);
    EXPECT_NE(read(history, first), "");
    EXPECT_NE(read(history, 0), "");
}

TEST(History, BytesOfAnotherPlaceOrVolumeAreNoticed) {
    History history(1, kBytes);
    History other(2, kBytes);
    uint32_t version = history.begin_write(0, kBytes, false);
    history.end_write(0, kBytes, version);
    Moment began = history.begin_read();
    Buffer elsewhere = content(history, 512, 512, version);
    EXPECT_NE(history.end_read(0, elsewhere.bytes(), began), "");
    Buffer strange = content(other, 0, 512, version);
    EXPECT_NE(history.end_read(0, strange.bytes(), began), "");
}

TEST(History, AWriteInFlightMayBeSeenOrNot) {
    History history(1, kBytes);
    uint32_t old = write(history);
    uint32_t next = history.begin_write(0, History::kSector, false);
    EXPECT_EQ(read(history, old), "");
    EXPECT_EQ(read(history, next), "");
    history.end_write(0, History::kSector, next);
    EXPECT_EQ(history.settle(), "");
}

TEST(History, AWriteThatWasSeenIsNotUndone) {
    History history(1, kBytes);
    uint32_t old = write(history);
    uint32_t next = history.begin_write(0, History::kSector, false);
    EXPECT_EQ(read(history, next), "");
    EXPECT_NE(read(history, old) + history.settle(), "");
}

// The crash decides; what was read after it stays.
TEST(History, AnUnknownWriteSettlesOnce) {
    for (bool happened : {true, false}) {
        History history(1, kBytes);
        uint32_t old = write(history);
        uint32_t cut_off = history.begin_write(0, History::kSector, false);
        EXPECT_EQ(history.settle(), "");
        EXPECT_EQ(read(history, happened ? cut_off : old), "");
        EXPECT_EQ(history.settle(), "");
        EXPECT_NE(read(history, happened ? old : cut_off) + history.settle(), "");
    }
}

TEST(History, ALaterWriteHidesAnUnknownOne) {
    History history(1, kBytes);
    uint32_t cut_off = history.begin_write(0, History::kSector, false);
    EXPECT_EQ(history.settle(), "");
    uint32_t last = write(history);
    EXPECT_EQ(read(history, last), "");
    EXPECT_EQ(history.settle(), "");
    EXPECT_NE(read(history, cut_off) + history.settle(), "");
}

TEST(History, ZerosThatNobodyWroteAreNoticed) {
    History history(1, kBytes);
    write(history);
    EXPECT_NE(read(history, 0), "");
    history.grow(2 * kBytes);
    Moment began = history.begin_read();
    Buffer zeros = Buffer::zeroed(kBytes);
    EXPECT_EQ(history.end_read(kBytes, zeros.bytes(), began), "");
}

}  // namespace
}  // namespace peplos::swarm
