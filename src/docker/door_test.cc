#include "docker/door.h"

#include <gtest/gtest.h>
#include <sys/stat.h>

#include "fabric/fake_node.h"
#include "http/test_world.h"

namespace peplos::docker {
namespace {

using http::Json;
using http::RawAnswer;
using http::RawClient;

// The bytes that dockerd 20.10 sends: empty Host, no Content-Type.
std::string as_dockerd(const std::string& method, const std::string& body) {
    return fmt::format(
        "POST /{} HTTP/1.1\r\nHost: \r\nUser-Agent: Go-http-client/1.1\r\nContent-Length: {}\r\n"
        "Accept: application/vnd.docker.plugins.v1.2+json\r\n\r\n{}",
        method, body.size(), body);
}

class DoorTest : public ::testing::Test {
  protected:
    void SetUp() override {
        node_.running.set();
        options_.socket_paths = {path_};
        options_.mount_deadline = std::chrono::milliseconds(150);
        options_.call_deadline = std::chrono::milliseconds(100);
        options_.stop_grace = std::chrono::milliseconds(50);
        door_ = std::make_unique<Door>(door_core_.executor(), node_, std::move(options_));
        auto started = door_core_.run([this] { return door_->start(); });
        ASSERT_TRUE(started) << started.error().text();
    }
    void TearDown() override {
        door_core_.run_task([this] { return door_->stop(); });
        node_core_.run([this] { node_.running.set(); });
        while (door_core_.run([this] { return door_->in_flight_count(); }) != 0) {
        }
        door_core_.stop();
        node_core_.stop();
    }
    Json call(const std::string& method, const std::string& body) {
        RawClient client(path_);
        RawAnswer answer = client.request(as_dockerd(method, body));
        EXPECT_EQ(answer.status, 200) << answer.body;
        EXPECT_NE(answer.header.find(fmt::format("Content-Type: {}", kMediaType)),
                  std::string::npos);
        return Json::parse(answer.body, nullptr, false);
    }
    std::string err(const std::string& method, const std::string& body) {
        return call(method, body).value("Err", "no Err");
    }
    std::vector<std::string> node_calls() {
        return node_core_.run([this] { return node_.calls; });
    }

    http::TestDirectory directory_;
    std::string path_ = directory_.file("plugins/peplos.sock");
    http::TestCore node_core_, door_core_;
    fabric::FakeNode node_{node_core_.executor()};
    Options options_;
    std::unique_ptr<Door> door_;
};

TEST_F(DoorTest, TheSocketIsTheOwnersAlone) {
    struct stat file{}, folder{};
    ASSERT_EQ(::stat(path_.c_str(), &file), 0);
    ASSERT_EQ(::stat(directory_.file("plugins").c_str(), &folder), 0);
    EXPECT_EQ(file.st_mode & 07777, 0600u);
    EXPECT_EQ(folder.st_mode & 07777, 0700u);
}

TEST_F(DoorTest, TheLifeOfAVolumeOnOneConnection) {
    RawClient dockerd(path_);
    auto say = [&](const std::string& method, const std::string& body) {
        RawAnswer answer = dockerd.request(as_dockerd(method, body));
        EXPECT_EQ(answer.status, 200) << method;
        return Json::parse(answer.body, nullptr, false);
    };
    EXPECT_EQ(say("Plugin.Activate", "")["Implements"][0], "VolumeDriver");
    EXPECT_EQ(say("VolumeDriver.Capabilities", "{}")["Capabilities"]["Scope"], "global");
    EXPECT_EQ(say("VolumeDriver.Get", R"({"Name":"data"})")["Err"],
              "no volume \"data\": see `peplos volume ls`");
    EXPECT_EQ(say("VolumeDriver.Create", R"({"Name":"data","Opts":{"size":"1GiB"}})")["Err"], "");
    EXPECT_EQ(say("VolumeDriver.Mount", R"({"Name":"data","ID":"aa"})")["Mountpoint"],
              "/var/lib/peplos/mnt/0000000000000001/data");
    // docker cp: the container's own id again.
    EXPECT_EQ(say("VolumeDriver.Mount", R"({"Name":"data","ID":"aa"})")["Err"], "");
    EXPECT_EQ(say("VolumeDriver.Unmount", R"({"Name":"data","ID":"aa"})")["Err"], "");
    Json got = say("VolumeDriver.Get", R"({"Name":"data"})")["Volume"];
    EXPECT_EQ(got["Name"], "data");
    EXPECT_EQ(got["CreatedAt"], "2023-11-14T22:13:20Z");
    EXPECT_EQ(got["Mountpoint"], "/var/lib/peplos/mnt/0000000000000001/data");
    Json status = got["Status"];
    EXPECT_EQ(status["size"], "1 GiB");
    EXPECT_EQ(status["host"], "node1");
    EXPECT_EQ(status["attach"], "fuse");
    EXPECT_EQ(status["device"], "/dev/loop7");
    EXPECT_EQ(status["health"], "green");
    EXPECT_EQ(status["holders"], Json::array({"aa"}));
    EXPECT_EQ(say("VolumeDriver.Path", R"({"Name":"data"})")["Mountpoint"],
              "/var/lib/peplos/mnt/0000000000000001/data");
    EXPECT_EQ(say("VolumeDriver.Remove", R"({"Name":"data"})")["Err"],
              "volume \"data\" is mounted by aa");
    EXPECT_EQ(say("VolumeDriver.Unmount", R"({"Name":"data","ID":"aa"})")["Err"], "");
    EXPECT_EQ(say("VolumeDriver.Unmount", R"({"Name":"data","ID":"unknown"})")["Err"], "");
    Json list = say("VolumeDriver.List", "{}")["Volumes"];
    ASSERT_EQ(list.size(), 1u);
    EXPECT_EQ(list[0]["Name"], "data");
    EXPECT_EQ(list[0]["Mountpoint"], "");
    EXPECT_EQ(say("VolumeDriver.Remove", R"({"Name":"data"})")["Err"], "");
}

TEST_F(DoorTest, CreateRepeatsSafely) {
    const std::string equal = R"({"Name":"data","Opts":{"size":"2GiB","fs":"xfs"}})";
    EXPECT_EQ(err("VolumeDriver.Create", equal), "");
    EXPECT_EQ(err("VolumeDriver.Create", equal), "");
    EXPECT_EQ(err("VolumeDriver.Create", R"({"Name":"data","Opts":null})"), "");
    EXPECT_EQ(err("VolumeDriver.Create", R"({"Name":"data","Opts":{}})"), "");
    EXPECT_EQ(err("VolumeDriver.Create", R"({"Name":"data"})"), "");
    EXPECT_NE(err("VolumeDriver.Create", R"({"Name":"data","Opts":{"size":"3GiB"}})"), "");
    EXPECT_EQ(node_core_.run([this] { return node_.created_count; }), 1);
}

TEST_F(DoorTest, TwoCreatesOfOneNameAtOnceMakeOneVolume) {
    std::vector<std::thread> threads;
    std::atomic<int> succeeded{0};
    for (int index = 0; index < 8; ++index) {
        threads.emplace_back([this, &succeeded] {
            if (err("VolumeDriver.Create", R"({"Name":"one","Opts":{"size":"1G"}})").empty()) {
                ++succeeded;
            }
        });
    }
    for (std::thread& thread : threads)
        thread.join();
    EXPECT_EQ(succeeded, 8);
    EXPECT_EQ(node_core_.run([this] { return node_.created_count; }), 1);
}

TEST_F(DoorTest, AnEmptyBodyOrNameHasNoEffect) {
    for (const char* method : {"Create", "Get", "Path", "Mount", "Unmount", "Remove"}) {
        for (const char* body : {"", "{}", R"({"Name":""})", R"({"Name":null})"}) {
            RawClient client(path_);
            RawAnswer answer =
                client.request(as_dockerd(std::string("VolumeDriver.") + method, body));
            EXPECT_EQ(answer.status, *body == '\0' ? 400 : 200);
            EXPECT_NE(Json::parse(answer.body, nullptr, false).value("Err", ""), "") << method;
        }
    }
    EXPECT_TRUE(node_calls().empty());
}

TEST_F(DoorTest, StrangeNamesAreRefusedWithTheAllowedForm) {
    std::string nul = R"({"Name":"a\u0000b","ID":"x"})";
    std::string long_name = R"({"Name":")" + std::string(300, 'a') + R"(","ID":"x"})";
    for (const std::string& body :
         {std::string(R"({"Name":"a/b","ID":"x"})"), std::string(R"({"Name":"..","ID":"x"})"),
          std::string("{\"Name\":\"caf\xc3\xa9\",\"ID\":\"x\"}"), nul, long_name}) {
        for (const char* method : {"Create", "Get", "Path", "Mount", "Unmount", "Remove"}) {
            std::string text = err(std::string("VolumeDriver.") + method, body);
            EXPECT_NE(text.find("letters, digits"), std::string::npos) << text;
        }
    }
    EXPECT_TRUE(node_calls().empty());
}

TEST_F(DoorTest, UnknownOptionsAreRefusedByName) {
    std::string text = err("VolumeDriver.Create", R"({"Name":"a","Opts":{"sizeMb":"10"}})");
    EXPECT_NE(text.find("unknown option \"sizeMb\""), std::string::npos) << text;
    EXPECT_NE(text.find("copies, fs, gid, label, mkfs-options, mode, sector-size, size, uid"),
              std::string::npos);
    EXPECT_TRUE(node_calls().empty());
}

TEST_F(DoorTest, AHangingNodeIsAnsweredForInTime) {
    node_core_.run([this] { node_.running.reset(); });
    for (const char* method : {"Create", "Get", "List", "Unmount", "Remove", "Path"}) {
        std::string text = err(std::string("VolumeDriver.") + method, R"({"Name":"a","ID":"x"})");
        EXPECT_NE(text.find("peplos doctor"), std::string::npos) << text;
    }
    // Nobody needs the node for these.
    EXPECT_EQ(call("VolumeDriver.Capabilities", "{}")["Capabilities"]["Scope"], "global");
    EXPECT_EQ(call("Plugin.Activate", "")["Implements"][0], "VolumeDriver");
    node_core_.run([this] { node_.running.set(); });
}

TEST_F(DoorTest, AMountThatComesTooLateIsTakenBack) {
    EXPECT_EQ(err("VolumeDriver.Create", R"({"Name":"data"})"), "");
    node_core_.run([this] { node_.running.reset(); });
    EXPECT_NE(err("VolumeDriver.Mount", R"({"Name":"data","ID":"late"})"), "");
    node_core_.run([this] { node_.running.set(); });
    // The mount ends, the door hears of it, the unmount follows: all without waiting for time.
    auto taken_back = [this] {
        auto calls = node_calls();
        return !calls.empty() && calls.back() == "unmount data late";
    };
    for (int turn = 0; turn < 10'000 && !taken_back(); ++turn)
        door_core_.run([] {});
    EXPECT_TRUE(taken_back());
    EXPECT_TRUE(node_core_.run([this] { return node_.holders["data"].empty(); }));
}

TEST_F(DoorTest, HoldersAreForgottenOncePerDockerdLife) {
    call("Plugin.Activate", "");
    call("Plugin.Activate", "");
    EXPECT_EQ(node_calls(), std::vector<std::string>{"forget"});
}

TEST_F(DoorTest, BadBytesGetCleanErrors) {
    struct Case {
        std::string bytes;
        int status;
    };
    std::string deep = R"({"Name":"a","Opts":)" + std::string(5000, '[') + "}";
    for (const Case& one : {
             Case{as_dockerd("VolumeDriver.Create", R"({"Name":"a","Opts":{)"), 400},
             Case{as_dockerd("VolumeDriver.Create", deep), 400},
             Case{as_dockerd("VolumeDriver.Create", "[]"), 400},
             Case{as_dockerd("VolumeDriver.Create", R"({"Name":7})"), 200},
             Case{as_dockerd("VolumeDriver.Create", R"({"Name":"a","Opts":{"size":7}})"), 200},
             Case{as_dockerd("VolumeDriver.Create", std::string(10 << 20, 'x')), 413},
             Case{as_dockerd("VolumeDriver.Nonsense", "{}"), 404},
             Case{"nonsense\r\n\r\n", 400},
             Case{std::string("\0\0\0\0\r\n\r\n", 8), 400},
         }) {
        RawClient client(path_);
        RawAnswer answer = client.request(one.bytes);
        EXPECT_EQ(answer.status, one.status) << one.bytes.substr(0, 100);
        EXPECT_NE(Json::parse(answer.body, nullptr, false).value("Err", ""), "");
    }
    EXPECT_TRUE(node_calls().empty());
}

TEST_F(DoorTest, StopsWhileTheNodeHangs) {
    node_core_.run([this] { node_.running.reset(); });
    RawClient client(path_);
    client.send(as_dockerd("VolumeDriver.Mount", R"({"Name":"a","ID":"x"})"));
    while (node_calls().empty()) {
    }
    door_core_.run_task([this] { return door_->stop(); });
    EXPECT_FALSE(std::filesystem::exists(path_));
}

TEST(SpecOf, ReadsEveryOption) {
    auto spec = spec_of("v", {{"size", "20GiB"},
                              {"fs", "xfs"},
                              {"mkfs-options", "-m crc=1"},
                              {"uid", "999"},
                              {"gid", "998"},
                              {"mode", "0750"},
                              {"label", "app=db,tier=gold"},
                              {"sector-size", "4096"},
                              {"copies", "1"}});
    ASSERT_TRUE(spec) << spec.error().text();
    EXPECT_EQ(spec->size_bytes, 20 * kGiB);
    EXPECT_EQ(spec->fs, fabric::FsType::xfs);
    EXPECT_EQ(spec->mkfs_options, "-m crc=1");
    EXPECT_EQ(spec->uid, 999);
    EXPECT_EQ(spec->gid, 998);
    EXPECT_EQ(spec->mode, 0750);
    EXPECT_EQ(spec->sector_bytes, 4096u);
    EXPECT_EQ(spec->labels, (std::map<std::string, std::string>{{"app", "db"}, {"tier", "gold"}}));
}

TEST(SpecOf, RefusesNonsense) {
    using Options = std::map<std::string, std::string>;
    for (const Options& options : {Options{{"size", "0"}},
                                   Options{{"size", "-1"}},
                                   Options{{"size", "1e30"}},
                                   Options{{"size", "nan"}},
                                   Options{{"size", ""}},
                                   Options{{"size", "999999999999T"}},
                                   Options{{"size", "1000001"}},
                                   Options{{"fs", "ntfs"}},
                                   Options{{"uid", "-1"}},
                                   Options{{"uid", "root"}},
                                   Options{{"gid", "4294967295"}},
                                   Options{{"mode", "0888"}},
                                   Options{{"mode", "77777"}},
                                   Options{{"label", "=x"}},
                                   Options{{"label", "a=1,a=2"}},
                                   Options{{"sector-size", "520"}},
                                   Options{{"copies", "0"}},
                                   Options{{"copies", "4"}},
                                   Options{{"mkfs-options", "-d /etc"}},
                                   Options{{"mkfs-options", "$(id)"}},
                                   Options{{"mkfs-options", "/dev/sda"}},
                                   Options{{"mkfs-options", "-n"}}}) {
        auto spec = spec_of("v", options);
        ASSERT_FALSE(spec) << options.begin()->first << "=" << options.begin()->second;
        EXPECT_EQ(spec.error().code(), Code::invalid_argument);
    }
}

}  // namespace
}  // namespace peplos::docker
