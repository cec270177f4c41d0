#pragma once

#include "keeper/keeper.h"
#include "volume/volume_test_rig.h"

namespace peplos::keeper {

// A volume on a simulated device, and a keeper behind it.
class KeptVolume : public testing::Test {
  protected:
    enum class Start : uint8_t { now, never };
    void make(volume::RigOptions options, KeeperOptions keeper_options = {},
              Start start = Start::now) {
        rig = std::make_unique<volume::Rig>(5, options);
        keeper = std::make_unique<Keeper>(rig->world.env(), keeper_options);
        rig->background = keeper.get();
        rig->make();
        if (start == Start::now) keeper->start();
        keeper->opened(*rig->volume);
    }
    void end() {
        if (!rig || !rig->volume) return;
        rig->world.run(keeper->closing(*rig->volume));
        rig->world.run(rig->volume->stop());
        rig->world.run(keeper->stop());
        rig->volume.reset();
        rig->stop_node();
    }
    void TearDown() override { end(); }

    std::unique_ptr<volume::Rig> rig;
    std::unique_ptr<Keeper> keeper;
};

}  // namespace peplos::keeper
