#include "app/config.h"

#include <gtest/gtest.h>

#include "app/logging.h"

namespace peplos::app {
namespace {

std::string refusal(std::string_view text) {
    auto config = parse_config(text, "peplosd.toml");
    if (config) config = completed(*config);
    return config ? "accepted" : config.error().message();
}

TEST(Config, ReadsEveryKey) {
    auto config = parse_config(R"(
        node_name = "anna"
        state_dir = "/srv/peplos"
        run_dir = "/run/p"
        [plugin]
        name = "cloth"
        [api]
        port = 0
        [cache]
        overlay = "64MiB"
        map = 33554432
        [core]
        spin_us = 100
        [log]
        level = "debug"
        format = "json"
        [control]
        kind = "etcd"
        endpoints = ["https://a:2379", "https://b:2379"]
        prefix = "/p/one/"
        ca = "/etc/peplos/ca.pem"
        cert = "/etc/peplos/node.pem"
        key = "/etc/peplos/node.key"
        [[device]]
        path = "/srv/peplos/device0"
        size = "20GiB"
        class = "ssd"
        [[device]]
        path = "/dev/nvme1n1"
    )",
                               "f");
    ASSERT_TRUE(config.has_value()) << config.error().text();
    config = completed(*config);
    ASSERT_TRUE(config.has_value()) << config.error().text();
    EXPECT_EQ(config->plugin_socket, "/run/docker/plugins/cloth.sock");
    EXPECT_EQ(config->api_socket, "/run/p/api.sock");
    EXPECT_EQ(config->api_port, 0);
    EXPECT_EQ(config->api_token, "/srv/peplos/api.token");
    EXPECT_EQ(config->overlay_bytes, 64 * kMiB);
    EXPECT_EQ(config->leaf_cache_bytes, 32 * kMiB);
    EXPECT_EQ(config->spin, std::chrono::microseconds(100));
    EXPECT_EQ(config->log_format, LogFormat::json);
    EXPECT_EQ(config->control, (ControlConfig{StoreKind::etcd,
                                              {"https://a:2379", "https://b:2379"},
                                              "/p/one/",
                                              "/etc/peplos/ca.pem",
                                              "/etc/peplos/node.pem",
                                              "/etc/peplos/node.key"}));
    ASSERT_EQ(config->devices.size(), 2u);
    EXPECT_EQ(config->devices[0].create_bytes, 20 * kGiB);
    EXPECT_EQ(config->devices[1].path, "/dev/nvme1n1");
}

TEST(Config, PrintedConfigurationReadsBackEqual) {
    auto config = completed({.node_name = "n",
                             .spin = std::chrono::microseconds(7),
                             .control = {.kind = StoreKind::etcd, .endpoints = {"http://e:1"}},
                             .devices = {{"/x", kGiB, "hdd"}, {"/y", 0, ""}}});
    ASSERT_TRUE(config.has_value());
    auto again = parse_config(print_config(*config), "again");
    ASSERT_TRUE(again.has_value()) << again.error().text();
    EXPECT_EQ(print_config(*again), print_config(*config));
    EXPECT_EQ(again->spin, config->spin);
    EXPECT_EQ(again->devices, config->devices);
}

TEST(Config, RefusesWhatItDoesNotKnowWithLineAndList) {
    std::string message = refusal("state_dir = \"/a\"\nstat_dir = \"/b\"\n");
    EXPECT_NE(message.find("peplosd.toml line 2: unknown key \"stat_dir\""), std::string::npos)
        << message;
    EXPECT_NE(message.find("state_dir"), std::string::npos);
    message = refusal("[plugin]\nsock = \"/a\"\n");
    EXPECT_NE(message.find("\"plugin.sock\"; known here: name, socket, managed_socket"),
              std::string::npos)
        << message;
}

TEST(Config, RefusesBadValues) {
    EXPECT_NE(refusal("state_dir = 5").find("must be a text in quotes"), std::string::npos);
    EXPECT_NE(refusal("state_dir = \"here\"").find("absolute path"), std::string::npos);
    EXPECT_NE(refusal("plugin = 3").find("must be a table"), std::string::npos);
    EXPECT_NE(refusal("device = []").find("[[device]]"), std::string::npos);
    EXPECT_NE(refusal("[cache]\noverlay = \"much\"").find("cache.overlay"), std::string::npos);
    EXPECT_NE(refusal("[cache]\noverlay = -1").find("cache.overlay"), std::string::npos);
    EXPECT_NE(refusal("[cache]\noverlay = \"1MiB\"").find("at least 16MiB"), std::string::npos);
    EXPECT_NE(refusal("[core]\nspin_us = 1001").find("from 0 to 1000"), std::string::npos);
    EXPECT_NE(refusal("[core]\nspin_us = -1").find("core.spin_us"), std::string::npos);
    EXPECT_NE(refusal("[core]\nspin_us = \"1ms\"").find("microseconds"), std::string::npos);
    EXPECT_NE(refusal("[log]\nlevel = \"loud\"").find("debug, info"), std::string::npos);
    EXPECT_NE(refusal("[log]\nformat = \"xml\"").find("text, json"), std::string::npos);
    EXPECT_NE(refusal("[api]\nport = \"nowhere\"").find("1 to 65535"), std::string::npos);
    EXPECT_NE(refusal("[api]\nport = 65536").find("1 to 65535"), std::string::npos);
    EXPECT_NE(refusal("[plugin]\nname = \"a/b\"").find("plugin.name"), std::string::npos);
    EXPECT_NE(refusal("[[device]]\npath = \"/d\"\n[[device]]\npath = \"/d\"").find("twice"),
              std::string::npos);
    EXPECT_NE(refusal("[[device]]\npath = \"/d\"\nclass = \"tape\"").find("nvme, ssd, hdd"),
              std::string::npos);
    EXPECT_NE(refusal("= = =").find("line 1"), std::string::npos);
    EXPECT_NE(refusal("run_dir = \"/" + std::string(120, 'x') + "\"").find("107"),
              std::string::npos);
    EXPECT_NE(refusal("[control]\nkind = \"zoo\"").find("embedded, etcd"), std::string::npos);
    EXPECT_NE(refusal("[control]\nkind = \"etcd\"").find("control.endpoints"), std::string::npos);
    EXPECT_NE(refusal("[control]\nendpoints = [\"http://a:1\"]").find("control.kind"),
              std::string::npos);
    const std::string etcd = "[control]\nkind = \"etcd\"\nendpoints = [\"https://a:1\"]\n";
    EXPECT_NE(refusal("[control]\nendpoints = 3").find("list of texts"), std::string::npos);
    EXPECT_NE(refusal(etcd + "prefix = \"x\"").find("end with '/'"), std::string::npos);
    EXPECT_NE(refusal(etcd + "ca = \"/ca\"").find("all three"), std::string::npos);
    EXPECT_NE(refusal(etcd + "ca = \"a\"\ncert = \"b\"\nkey = \"c\"").find("absolute path"),
              std::string::npos);
    EXPECT_EQ(refusal(etcd), "accepted");
    EXPECT_EQ(refusal(""), "accepted");
}

Result<DaemonOptions> options(std::vector<const char*> flags) {
    flags.insert(flags.begin(), "peplosd");
    return read_options(static_cast<int>(flags.size()), flags.data());
}

TEST(Options, FlagsOverrideTheDefaults) {
    auto read = options({"--state-dir", "/s", "--api-port", "0", "--overlay", "32MiB", "--device",
                         "/d,size=1GiB,class=nvme", "--device", "/e"});
    ASSERT_TRUE(read.has_value()) << read.error().text();
    EXPECT_FALSE(read->answer.has_value());
    EXPECT_EQ(read->config.state_dir, "/s");
    EXPECT_EQ(read->config.api_port, 0);
    EXPECT_EQ(read->config.overlay_bytes, 32 * kMiB);
    ASSERT_EQ(read->config.devices.size(), 2u);
    EXPECT_EQ(read->config.devices[0].media_class, "nvme");
    EXPECT_EQ(read->config.devices[0].create_bytes, kGiB);
    read = options({"--etcd", "http://a:1,http://b:2"});
    ASSERT_TRUE(read.has_value()) << read.error().text();
    EXPECT_EQ(read->config.control.kind, StoreKind::etcd);
    EXPECT_EQ(read->config.control.endpoints,
              (std::vector<std::string>{"http://a:1", "http://b:2"}));
}

TEST(Options, AnswersAndRefusals) {
    auto help = options({"--help"});
    ASSERT_TRUE(help.has_value() && help->answer.has_value());
    EXPECT_NE(help->answer->find("--state-dir"), std::string::npos);
    auto version = options({"--version"});
    ASSERT_TRUE(version.has_value() && version->answer.has_value());
    EXPECT_EQ(*version->answer, "peplosd " PEPLOS_VERSION "\n");
    EXPECT_FALSE(options({"--colour"}).has_value());
    EXPECT_FALSE(options({"--overlay", "lots"}).has_value());
    EXPECT_FALSE(options({"--device", "/d,speed=9"}).has_value());
    auto missing = options({"--config", "/nowhere/peplosd.toml"});
    ASSERT_FALSE(missing.has_value());
    EXPECT_EQ(missing.error().code(), Code::not_found);
}

TEST(Logging, LiftsKeyValuePairsOutOfTheMessage) {
    EXPECT_EQ(
        json_log_line(1'700'000'000'123'456'789, "info", "volume \"x\" opened volume=00ab epoch=3"),
        R"({"time":"2023-11-14T22:13:20.123456Z","level":"info",)"
        R"("message":"volume \"x\" opened volume=00ab epoch=3","epoch":"3","volume":"00ab"})");
    EXPECT_EQ(json_log_line(0, "warn", "a=b c"),
              R"({"time":"1970-01-01T00:00:00.000000Z","level":"warn","message":"a=b c"})");
    // Bytes that are no UTF-8 must not stop the log.
    EXPECT_NE(json_log_line(0, "warn", "x \xff level=9").find("level_"), std::string::npos);
}

}  // namespace
}  // namespace peplos::app
