#include "control/loss_record.h"

#include <gtest/gtest.h>

namespace peplos::control {
namespace {

TEST(LossRecord, ComesBackAsItWasAndOthersAreRefused) {
    LossRecord record{1'700'000'000, true, "the newest writes"};
    auto back = decode_loss(encode_loss(record));
    ASSERT_TRUE(back) << back.error().text();
    EXPECT_EQ(*back, record);
    record.what = std::string(10'000, 'x');
    EXPECT_EQ(decode_loss(encode_loss(record))->what.size(), kLossTextBytesMax);
    EXPECT_EQ(volume_of_loss_key(loss_key(VolumeId(77))), VolumeId(77));
    EXPECT_EQ(volume_of_loss_key("volume/0000000000000001"), VolumeId());
    EXPECT_EQ(decode_loss("{}").error().code(), Code::corrupt);
    EXPECT_EQ(decode_loss("nothing").error().code(), Code::corrupt);
    EXPECT_EQ(decode_loss(R"({"record_version":9,"accepted_at_s":1,"is_done":1,"what":""})")
                  .error()
                  .code(),
              Code::unsupported);
}

}  // namespace
}  // namespace peplos::control
