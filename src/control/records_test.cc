#include "control/records.h"

#include <gtest/gtest.h>

#include "base/check.h"
#include "base/units.h"
#include "control/test_text.h"

namespace peplos::control {
namespace {

VolumeRecord sample_volume() {
    VolumeRecord record;
    record.id = VolumeId(0x0123456789abcdef);
    record.name = "data";
    record.lineage = LineageId(7);
    record.size_bytes = 20 * kGiB;
    record.labels = {{"team", "db"}, {"o", "\u00fc"}};
    record.created_at_s = 1'795'000'000;
    record.format_state = FormatState::formatted;
    record.fs = "xfs";
    record.mkfs_options = "-m reflink=0";
    record.uid = 70;
    record.mode = 0750;
    record.owner = NodeId(9);
    record.epoch = Epoch(3);
    record.state = OwnershipState::recovering;
    EnsembleMember member{NodeId(9), DeviceId{{1, 2, 3}}, Incarnation(4), OpenToken(UINT64_MAX)};
    record.ensemble = {member};
    record.version = 12;
    return record;
}

Result<VolumeRecord> decode_volume(const std::string& text) {
    return decode<VolumeRecord>(text);
}

TEST(Records, ReadBackWhatTheyPrint) {
    VolumeRecord volume = sample_volume();
    EXPECT_EQ(decode<VolumeRecord>(*encode(volume)), volume);
    volume.lifecycle = Lifecycle::deleting;
    EXPECT_EQ(decode<VolumeRecord>(*encode(volume)), volume);
    volume.claim_token = OpenToken(8);
    volume.generation = UINT64_MAX;
    volume.degrade_after_s = 60;
    EXPECT_EQ(decode<VolumeRecord>(*encode(volume)), volume);
    NodeRecord node{NodeId(5), "host-1", {"10.0.0.1:7400"}, 1'795'000'000};
    EXPECT_EQ(decode<NodeRecord>(*encode(node)), node);
    node.zone = "berlin-1";
    node.rack = "r7";
    node.state = NodeState::evacuating;
    node.fingerprint = std::string(64, 'a');
    node.protocol_max = 3;
    EXPECT_EQ(decode<NodeRecord>(*encode(node)), node);
    DeviceRecord device{DeviceId{{9, 8}}, NodeId(5),       "/dev/nvme0n1",     MediaClass::nvme,
                        1 << 30,          Incarnation(77), DeviceState::failed};
    EXPECT_EQ(decode<DeviceRecord>(*encode(device)), device);
    ClusterRecord cluster{ClusterId(1), 1'795'000'000, 1};
    EXPECT_EQ(decode<ClusterRecord>(*encode(cluster)), cluster);
    VolumeNameRecord name{VolumeId(3)};
    EXPECT_EQ(decode<VolumeNameRecord>(*encode(name)), name);
}

TEST(Records, HaveOneTextOnTheDisk) {
    EXPECT_EQ(*encode(VolumeNameRecord{VolumeId(0xab)}),
              R"({"id":"00000000000000ab","record_version":1})");
    EXPECT_EQ(volume_key(VolumeId(0xab)), "volume/00000000000000ab");
    EXPECT_EQ(volume_name_key("data"), "volume-name/data");
    EXPECT_EQ(device_key(DeviceId{{0xab}}), "device/ab000000000000000000000000000000");
}

TEST(Records, RefuseANewerVersion) {
    std::string text =
        replaced(*encode(sample_volume()), R"("record_version":2)", R"("record_version":3)");
    EXPECT_EQ(decode_volume(text).error().code(), Code::unsupported);
    text = replaced(text, R"("record_version":3)", R"("record_version":0)");
    EXPECT_EQ(decode_volume(text).error().code(), Code::corrupt);
}

// What Peplos 0.1 wrote, a cluster of one node.
TEST(Records, ReadVersion1) {
    std::string volume = *encode(sample_volume());
    for (const char* added : {R"("claim_token":"0000000000000000",)", R"("degrade_after_s":null,)",
                              R"("generation":"0000000000000000",)"}) {
        EXPECT_EQ(decode_volume(replaced(volume, added, "")).error().code(), Code::corrupt);
    }
    std::string old = volume;
    for (const char* added : {R"("claim_token":"0000000000000000",)", R"("degrade_after_s":null,)",
                              R"("generation":"0000000000000000",)"}) {
        old = replaced(old, added, "");
    }
    old = replaced(old, R"("record_version":2)", R"("record_version":1)");
    EXPECT_EQ(decode_volume(old), sample_volume());
    volume = replaced(volume, R"("record_version":2)", R"("record_version":1)");
    EXPECT_EQ(decode_volume(volume).error().code(), Code::corrupt) << "a field of version 2";
    NodeRecord node{NodeId(5), "host-1", {"10.0.0.1:7400"}, 1'795'000'000};
    EXPECT_EQ(decode<NodeRecord>(R"({"addresses":["10.0.0.1:7400"],"created_at_s":1795000000,)"
                                 R"("id":"0000000000000005","name":"host-1","record_version":1})"),
              node);
}

TEST(Records, RefuseNodesThatCannotBe) {
    NodeRecord good{NodeId(5), "host-1", {}, 1};
    ASSERT_TRUE(encode(good));
    NodeRecord bad = good;
    bad.zone = "a/b";
    EXPECT_FALSE(encode(bad));
    bad = good;
    bad.rack = std::string(65, 'r');
    EXPECT_FALSE(encode(bad));
    bad = good;
    bad.fingerprint = "abc";
    EXPECT_FALSE(encode(bad));
    bad = good;
    bad.protocol_min = 2;
    EXPECT_FALSE(encode(bad));
    bad.protocol_min = 0;
    EXPECT_FALSE(encode(bad));
    VolumeRecord unowned = sample_volume();
    unowned.owner = {};
    unowned.epoch = {};
    unowned.ensemble.clear();
    ASSERT_TRUE(encode(unowned));
    unowned.claim_token = OpenToken(1);
    EXPECT_FALSE(encode(unowned));
}

TEST(Records, RefuseEveryOtherText) {
    std::string good = *encode(sample_volume());
    for (size_t size = 0; size < good.size(); ++size) {
        EXPECT_FALSE(decode_volume(good.substr(0, size)));
    }
    std::pair<const char*, const char*> changes[] = {
        {R"("copies":1)", R"("copies":0)"},
        {R"("copies":1)", R"("copies":4)"},
        {R"("copies":1)", R"("copies":"1")"},
        {R"("copies":1)", R"("copies":1.0)"},
        {R"("copies":1)", R"("copies":-1)"},
        {R"("copies":1)", R"("copies":1e30)"},
        {R"("copies":1)", R"("copies":1,"copies":1)"},
        {R"("copies":1)", R"("copys":1)"},
        {R"("copies":1)", R"("copies":1,"key":1)"},
        {R"("copies":1,)", ""},
        {R"("sector_bytes":512)", R"("sector_bytes":1024)"},
        {R"("shard_count":1)", R"("shard_count":2)"},
        {R"("size_bytes":21474836480)", R"("size_bytes":21474836481)"},
        {R"("size_bytes":21474836480)", R"("size_bytes":0)"},
        {R"("0123456789abcdef")", R"("0123456789ABCDEF")"},
        {R"("0123456789abcdef")", R"("0000000000000000")"},
        {R"("name":"data")", R"("name":"../data")"},
        {R"("state":"recovering")", R"("state":"deleting")"},
        {R"("compression":"off")", R"("compression":"lz4")"},
        {R"("fs":"xfs")", R"("fs":"x fs")"},
        {R"("mkfs_options":"-m)", R"("mkfs_options":"\u0000)"},
        {R"("mode":488)", R"("mode":4096)"},
        {R"("epoch":3)", R"("epoch":0)"},
        {R"("uid":70)", R"("uid":4294967296)"},
        {R"("labels":{)", R"("labels":{"":"x",)"},
        {R"("labels":{)", R"("labels":{"team":"x",)"},
        {R"("token":"ffffffffffffffff")", R"("token":"fffffffffffffff")"},
    };
    for (const auto& [from, to] : changes) {
        Result<VolumeRecord> read = decode_volume(replaced(good, from, to));
        ASSERT_FALSE(read) << to;
        EXPECT_EQ(read.error().code(), Code::corrupt) << to;
    }
    EXPECT_FALSE(decode_volume(good + "x"));
    EXPECT_FALSE(decode_volume(std::string(60'000, '[')));
    EXPECT_FALSE(decode_volume(std::string(10'000'000, ' ')));
    EXPECT_FALSE(decode_volume("[]"));
    EXPECT_FALSE(decode_volume("null"));
}

TEST(Records, RefuseToPrintWhatTheyWouldNotRead) {
    VolumeRecord record = sample_volume();
    record.labels["x"] = "\xff\xfe";
    EXPECT_EQ(encode(record).error().code(), Code::invalid_argument);
    record = sample_volume();
    record.ensemble.push_back(record.ensemble[0]);
    EXPECT_EQ(encode(record).error().code(), Code::invalid_argument);
    record = sample_volume();
    record.size_bytes = 128 * kTiB;
    EXPECT_EQ(encode(record).error().code(), Code::invalid_argument);
}

TEST(Records, KnowWhichNamesDockerAllows) {
    for (const char* good : {"a", "0", "Data_1.x-y", "a..b"})
        EXPECT_TRUE(check_volume_name(good));
    std::string long_name(300, 'a');
    std::string zero("a\0b", 3);
    for (std::string bad : {std::string(), std::string(".."), std::string("a/b"), zero, long_name,
                            std::string("\u00fc"), std::string("-a"), std::string("a b")}) {
        EXPECT_EQ(check_volume_name(bad).error().code(), Code::invalid_argument) << bad;
    }
}

}  // namespace
}  // namespace peplos::control
