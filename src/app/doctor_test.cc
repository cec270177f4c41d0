#include "app/doctor.h"

#include <gtest/gtest.h>
#include <set>

#include "app/views.h"

namespace peplos::app {
namespace {

// A host where everything is well; each test spoils one thing.
struct Host {
    Json status = {{"version", "0.1.0"},
                   {"health", {{"light", "green"}}},
                   {"devices",
                    {{{"path", "/d0"},
                      {"segment_bytes_total", 100 * kGiB},
                      {"segment_bytes_free", 50 * kGiB}}}}};
    Json volumes = {{"volumes", {{{"name", "data"}, {"id", "00000000000000aa"}}}}};
    Json docker_volumes = {{"Volumes", {{{"Name", "data"}, {"Driver", "peplos"}}}}};
    Json plugins = Json::array();
    std::set<std::string> files = {"/dev/fuse", "/dev/loop-control", "/run/docker/plugins/p.sock"};
    Json leftovers = {{"leftovers", Json::array()}};
    std::vector<std::string> posted;
    std::vector<std::string> asked;  // of dockerd
    std::set<std::string> dead;      // sockets that refuse
    std::string file_systems = "\text4\n\txfs\n";
    std::string modules;
    bool daemon = true;
    bool dockerd = true;

    DoctorWorld world() {
        DoctorWorld w;
        w.peplos = [this](const std::string& method, const std::string& target,
                          const Json&) -> Result<Json> {
            if (!daemon) return fail(Code::unavailable, "peplosd does not run");
            if (method == "POST") {
                posted.push_back(target);
                return Json::object();
            }
            if (target == "/v1/leftovers") return leftovers;
            return target == "/v1/status" ? status : volumes;
        };
        w.docker = [this](const std::string&, const std::string& target) -> Result<Json> {
            if (!dockerd) return fail(Code::unavailable, "refused");
            asked.push_back(target);
            if (target.starts_with("/volumes?")) return docker_volumes;
            if (target == "/plugins") return plugins;
            return Json::object();
        };
        w.read_file = [this](const std::string& path) -> std::string {
            if (path == "/proc/filesystems") return file_systems;
            return path == "/lib/modules/6.18.1-x/modules.dep" ? modules : "";
        };
        w.exists = [this](const std::string& path) { return files.contains(path); };
        w.plugin_sockets = [this] {
            std::vector<std::string> sockets;
            for (const std::string& file : files)
                if (file.ends_with(".sock")) sockets.push_back(file);
            return sockets;
        };
        w.is_dead = [this](const std::string& path) { return dead.contains(path); };
        w.remove_file = [this](const std::string& path) -> Result<void> {
            files.erase(path);
            return {};
        };
        w.kernel_release = "6.18.1-x";
        w.plugin_socket = "/run/docker/plugins/p.sock";
        return w;
    }

    // "error check" of everything that is not ok.
    std::vector<std::string> troubles() {
        std::vector<std::string> out;
        for (const Finding& f : examine(world())) {
            if (f.level == Finding::Level::ok) continue;
            EXPECT_FALSE(f.reason.empty());
            EXPECT_FALSE(f.next.empty()) << f.check;
            out.push_back((f.level == Finding::Level::error ? "error " : "warning ") + f.check);
        }
        return out;
    }
};

using Troubles = std::vector<std::string>;

TEST(Doctor, AHealthyHostHasNoFinding) {
    Host host;
    EXPECT_EQ(host.troubles(), Troubles{});
    EXPECT_NE(show_findings(examine(host.world()), Style::plain).find("Nothing to mend"),
              std::string::npos);
}

TEST(Doctor, FindsMissingKernelFeatures) {
    Host host;
    host.files.erase("/dev/fuse");
    host.files.erase("/dev/loop-control");
    EXPECT_EQ(host.troubles(), (Troubles{"error kernel-fuse", "error kernel-loop"}));
    Host old;
    DoctorWorld world = old.world();
    world.kernel_release = "6.1.0-18-amd64";
    EXPECT_EQ(examine(world)[0].level, Finding::Level::warning);
}

TEST(Doctor, AFileSystemMayBeAModuleThatIsNotLoadedYet) {
    Host host;
    host.file_systems = "nodev\tproc\n\text4\n";
    EXPECT_EQ(host.troubles(), (Troubles{"warning kernel-fs"}));
    host.modules = "kernel/fs/xfs/xfs.ko: kernel/lib/libcrc32c.ko\n";
    EXPECT_EQ(host.troubles(), Troubles{});
}

TEST(Doctor, FindsADaemonThatDoesNotRunOrIsNotWell) {
    Host host;
    host.daemon = false;
    EXPECT_EQ(host.troubles(), (Troubles{"error daemon"}));
    Host ill;
    ill.status["health"] = {{"light", "yellow"}, {"reason", "slow"}, {"next", "wait"}};
    EXPECT_EQ(ill.troubles(), (Troubles{"warning daemon"}));
}

TEST(Doctor, FindsANearlyFullDevice) {
    Host host;
    host.status["devices"][0]["segment_bytes_free"] = 8 * kGiB;
    EXPECT_EQ(host.troubles(), (Troubles{"warning device-space"}));
    host.status["devices"][0]["segment_bytes_free"] = 4 * kGiB;
    EXPECT_EQ(host.troubles(), (Troubles{"error device-space"}));
}

TEST(Doctor, TellsOfADeviceThatGoesBadAndTheTableCountsItsErrors) {
    Host host;
    Json& device = host.status["devices"][0];
    device["read_errors"] = 2;
    device["write_errors"] = 0;
    device["corruptions"] = 3;
    device["health"] = {{"light", "yellow"}, {"reason", "/d0: 2 failed reads"}, {"next", "look"}};
    host.status["health"] = device["health"];
    EXPECT_EQ(host.troubles(), (Troubles{"warning daemon"}));
    std::string shown = show_findings(examine(host.world()), Style::plain);
    EXPECT_NE(shown.find("/d0: 2 failed reads"), std::string::npos) << shown;
    std::string table = show_devices({{"devices", host.status["devices"]}}, Style::plain);
    EXPECT_NE(table.find("  5  "), std::string::npos) << table;
}

TEST(Doctor, PointsAtTheWayOutForAVolumeThatDamageKeepsClosed) {
    Host host;
    host.volumes["volumes"][0]["health"] = {{"light", "red"},
                                            {"reason", "its map cannot be read"},
                                            {"next", "peplos volume recover data"}};
    auto findings = examine(host.world());
    auto found = std::ranges::find(findings, "volume", &Finding::check);
    ASSERT_NE(found, findings.end());
    EXPECT_EQ(found->level, Finding::Level::error);
    EXPECT_EQ(found->next, "peplos volume recover data");
    EXPECT_EQ(found->reason, "volume data: its map cannot be read");
}

TEST(Doctor, FindsALocalDockerVolumeThatHidesOurs) {
    Host host;
    host.docker_volumes["Volumes"] = {{{"Name", "data"}, {"Driver", "local"}},
                                      {{"Name", "other"}, {"Driver", "local"}}};
    EXPECT_EQ(host.troubles(), (Troubles{"error shadowed-volume"}));
}

TEST(Doctor, FindsWhatIsWrongWithThePlugin) {
    Host host;
    host.files.erase("/run/docker/plugins/p.sock");
    EXPECT_EQ(host.troubles(), (Troubles{"error plugin"}));
    host.plugins = {{{"Name", "peplos:latest"}, {"Enabled", true}}};
    EXPECT_EQ(host.troubles(), Troubles{});
    host.files.insert("/run/docker/plugins/p.sock");
    EXPECT_EQ(host.troubles(), (Troubles{"error plugin"}));
    host.dockerd = false;
    EXPECT_EQ(host.troubles(), (Troubles{"warning docker"}));
}

TEST(Doctor, TakesADeadPluginSocketAwayUnlessItLivesAgain) {
    Host host;
    std::string other = "/run/docker/plugins/other.sock";
    host.files.insert(other);
    EXPECT_EQ(host.troubles(), Troubles{}) << "another plugin that lives";
    host.dead.insert(other);
    host.asked.clear();
    EXPECT_EQ(host.troubles(), (Troubles{"warning dead-plugin"}));
    for (const std::string& target : host.asked)
        EXPECT_EQ(target.find("/volumes"), std::string::npos) << "dockerd would wait";
    for (bool lives : {true, false}) {
        host.dead.insert(other);
        for (const Finding& finding : examine(host.world())) {
            if (finding.check != "dead-plugin") continue;
            EXPECT_NE(finding.reason.find(other), std::string::npos);
            if (lives) host.dead.clear();
            EXPECT_TRUE(finding.fix());
        }
        EXPECT_EQ(host.files.contains(other), lives);
    }
    EXPECT_EQ(host.troubles(), Troubles{});
}

TEST(Doctor, NamesItsOwnDeadSocketAndAsksDockerdForNothingThatHangs) {
    Host host;
    host.dead.insert("/run/docker/plugins/p.sock");
    EXPECT_EQ(host.troubles(), (Troubles{"error plugin"}));
    for (const std::string& target : host.asked) {
        EXPECT_EQ(target.find("/volumes"), std::string::npos) << target;
    }
    for (const Finding& finding : examine(host.world()))
        EXPECT_EQ(finding.fix, nullptr);
}

TEST(Doctor, MendsLeftoversThatNobodyHoldsWithOneCall) {
    Host host;
    Json one = {{"id", "00000000000000bb"}, {"what", "a mount"}, {"has_holders", false}};
    host.leftovers["leftovers"] = {one, one};
    EXPECT_EQ(host.troubles(), (Troubles{"warning leftovers", "warning leftovers"}));
    for (const Finding& finding : examine(host.world())) {
        if (finding.fix != nullptr) EXPECT_TRUE(finding.fix().has_value());
    }
    EXPECT_EQ(host.posted, (Troubles{"/v1/leftovers/mend"}));
}

TEST(Doctor, LeavesLeftoversThatContainersWaitForToAPerson) {
    Host host;
    host.leftovers["leftovers"] = {
        {{"id", "aa"}, {"volume", "data"}, {"what", "a mount"}, {"has_holders", true}}};
    EXPECT_EQ(host.troubles(), (Troubles{"error leftovers"}));
    for (const Finding& finding : examine(host.world()))
        EXPECT_EQ(finding.fix, nullptr);
}

TEST(Doctor, FixesADeadAttachmentThatNobodyHolds) {
    Host host;
    host.volumes["volumes"][0]["attach"] = {{"device", "/dev/loop1"}, {"problem", "holder died"}};
    host.volumes["volumes"][0]["holders"] = Json::array();
    EXPECT_EQ(host.troubles(), (Troubles{"error attachment"}));
    for (const Finding& finding : examine(host.world())) {
        if (finding.fix != nullptr) EXPECT_TRUE(finding.fix().has_value());
    }
    EXPECT_EQ(host.posted, (Troubles{"/v1/volumes/data/detach"}));
    host.volumes["volumes"][0]["holders"] = {"c1"};
    for (const Finding& finding : examine(host.world()))
        EXPECT_EQ(finding.fix, nullptr);
}

}  // namespace
}  // namespace peplos::app
