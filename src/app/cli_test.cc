#include "app/cli.h"

#include <filesystem>
#include <fstream>
#include <gtest/gtest.h>
#include <sstream>
#include <sys/stat.h>

#include "app/command.h"
#include "app/init.h"
#include "app/support.h"
#include "app/views.h"
#include "base/units.h"

namespace peplos::app {
namespace {

struct Outcome {
    int code = 0;
    std::string out;
    std::string err;
};

Outcome peplos(std::vector<const char*> words) {
    words.insert(words.begin(), {"peplos", "--socket", "/nowhere/api.sock"});
    std::ostringstream out;
    std::ostringstream err;
    int code = run_cli(static_cast<int>(words.size()), words.data(), out, err, false);
    return {code, out.str(), err.str()};
}

class Folder {
  public:
    Folder() : path_(::testing::TempDir() + "peplos-cli-" + std::to_string(::getpid())) {
        std::filesystem::create_directories(path_);
    }
    ~Folder() { std::filesystem::remove_all(path_); }
    std::string operator/(const std::string& name) const { return path_ + "/" + name; }

  private:
    std::string path_;
};

TEST(Cli, SaysWhatItDoesNotUnderstand) {
    EXPECT_EQ(peplos({"volume", "create"}).code, 2);
    EXPECT_NE(peplos({"volume", "create"}).err.find("NAME"), std::string::npos);
    EXPECT_NE(peplos({"volume", "create"}).err.find("peplos volume create --help"),
              std::string::npos);
    EXPECT_EQ(peplos({"fly"}).code, 2);
    EXPECT_EQ(peplos({"status", "--fly"}).code, 2);
    EXPECT_EQ(peplos({}).code, 2);
    EXPECT_EQ(peplos({"--version"}).code, 0);
    EXPECT_NE(peplos({"volume", "--help"}).out.find("grow"), std::string::npos);
}

TEST(Cli, ErrorsGoToStderrInTheFormThatWasAskedFor) {
    Outcome plain = peplos({"status"});
    EXPECT_EQ(plain.code, 1);
    EXPECT_EQ(plain.out, "");
    EXPECT_EQ(plain.err.find("error: "), 0u) << plain.err;
    Outcome json = peplos({"status", "--json"});
    EXPECT_EQ(json.code, 1);
    Json parsed = Json::parse(json.err, nullptr, false);
    EXPECT_EQ(text_in(child_in(parsed, "error"), "code"), "unavailable") << json.err;
}

TEST(Cli, DetachNeedsForce) {
    Outcome run = peplos({"volume", "detach", "data"});
    EXPECT_EQ(run.code, 1);
    EXPECT_NE(run.err.find("--force"), std::string::npos);
}

TEST(Views, ARecoveryIsShownWithWhatItCosts) {
    Json report = {{"is_whole", false},
                   {"is_done", false},
                   {"findings", {"/dev/sdx at offset 4096: journal frame 3 cannot be read"}},
                   {"losses", {"the newest writes"}},
                   {"lost_bytes", 8192},
                   {"message", "nothing was changed"}};
    std::string text = show_recovery(report);
    EXPECT_NE(text.find("What would be lost:\n  the newest writes\n"), std::string::npos) << text;
    EXPECT_NE(text.find("offset 4096"), std::string::npos);
    EXPECT_NE(text.find("8 KiB"), std::string::npos);
    report["is_done"] = true;
    EXPECT_NE(show_recovery(report).find("What is lost:"), std::string::npos);
    report["losses"] = Json::array();
    EXPECT_NE(show_recovery(report).find("Nothing else is lost"), std::string::npos);
    Json volume = {{"name", "data"},
                   {"recovered_at", "2026-11-23T01:02:03Z"},
                   {"recovered_without", "the newest writes"}};
    EXPECT_NE(show_volume(volume, Style::plain)
                  .find("Recovered   2026-11-23T01:02:03Z, with loss: the newest writes\n"),
              std::string::npos)
        << show_volume(volume, Style::plain);
}

TEST(Completion, KnowsCommandsAndOptions) {
    EXPECT_EQ(peplos({"complete", "--", "volume", "rec"}).out, "recover\n");
    EXPECT_EQ(peplos({"complete", "--", "volume", "recover", "--a"}).out, "--accept-loss\n");
    EXPECT_NE(peplos({"complete", "--", "volume", ""}).out.find("create\n"), std::string::npos);
    EXPECT_EQ(peplos({"complete", "--", "volume", "cr"}).out, "create\n");
    EXPECT_EQ(peplos({"complete", "--", "do"}).out, "doctor\n");
    EXPECT_EQ(peplos({"complete", "--", "doctor", "--f"}).out, "--fix\n");
    EXPECT_EQ(peplos({"complete", "--", "comp"}).out, "completion\n");
    for (const char* shell : {"bash", "zsh", "fish"}) {
        EXPECT_NE(peplos({"completion", shell}).out.find("peplos complete --"), std::string::npos);
    }
    EXPECT_EQ(peplos({"completion", "csh"}).code, 1);
}

TEST(Init, WritesAConfigurationOnce) {
    Folder folder;
    InitOptions options{.config_path = folder / "etc/peplosd.toml",
                        .state_dir = folder / "state",
                        .device_bytes = 2 * kGiB,
                        .start = false};
    auto first = init_node(options);
    ASSERT_TRUE(first.has_value()) << first.error().text();
    EXPECT_NE(first->find("docker volume create"), std::string::npos);
    std::ifstream file(options.config_path);
    std::ostringstream text;
    text << file.rdbuf();
    EXPECT_NE(text.str().find("size = \"2GiB\""), std::string::npos) << text.str();
    auto second = init_node(options);
    ASSERT_FALSE(second.has_value());
    EXPECT_EQ(second.error().code(), Code::already_exists);
}

TEST(Init, SizesTheFirstDevice) {
    EXPECT_EQ(sensible_device_bytes(100 * kGiB).value(), 50 * kGiB);
    EXPECT_EQ(sensible_device_bytes(9 * kGiB).value(), 4 * kGiB);
    EXPECT_EQ(sensible_device_bytes(100 * kTiB).value(), 4 * kTiB);
    EXPECT_EQ(sensible_device_bytes(7 * kGiB).error().code(), Code::no_space);
}

TEST(Support, RemovesSecrets) {
    EXPECT_EQ(without_secrets("password = \"hunter2\"\n"), "password = [removed]\n");
    EXPECT_EQ(without_secrets("{\"api_token\": \"abc\", \"size\": 3}\n"),
              "{\"api_token\": [removed], \"size\": 3}\n");
    EXPECT_EQ(without_secrets("Authorization: Bearer abc.def\n"), "Authorization: [removed]\n");
    EXPECT_EQ(without_secrets("x POSTGRES_PASSWORD=hunter2 y=1\n"),
              "x POSTGRES_PASSWORD=[removed] y=1\n");
    EXPECT_EQ(without_secrets("volume=data state=attached\n"), "volume=data state=attached\n");
    EXPECT_EQ(
        without_secrets("a\n-----BEGIN PRIVATE KEY-----\nMII\n-----END PRIVATE KEY-----\nb\n"),
        "a\n[private key removed]\nb\n");
    EXPECT_NE(without_secrets(std::string(1'000'000, 'x')).find("[cut]"), std::string::npos);
}

TEST(Support, WritesAnArchiveThatOnlyItsOwnerReads) {
    Folder folder;
    std::string path = folder / "s.tar.gz";
    auto written = write_support_archive(path, {{"a.txt", "token=1\n"}});
    ASSERT_TRUE(written.has_value()) << written.error().text();
    struct stat info{};
    ASSERT_EQ(::stat(path.c_str(), &info), 0);
    EXPECT_EQ(info.st_mode & 0777, 0600u);
    auto listed = run_command({"tar", "-xzOf", path}, 10);
    ASSERT_TRUE(listed.has_value());
    EXPECT_EQ(listed->output, "token=[removed]\n");
    EXPECT_EQ(write_support_archive(path, {}).error().code(), Code::already_exists);
}

TEST(Command, BoundsTimeAndNamesWhatIsMissing) {
    auto echoed = run_command({"sh", "-c", "echo out; echo err >&2; exit 3"}, 5);
    ASSERT_TRUE(echoed.has_value());
    EXPECT_EQ(echoed->exit_code, 3);
    EXPECT_EQ(echoed->output, "out\nerr\n");
    EXPECT_EQ(run_command({"no-such-program-here"}, 5).error().code(), Code::not_found);
    EXPECT_EQ(run_command({"sleep", "30"}, 0).error().code(), Code::unavailable);
}

TEST(Views, StatusIsOneScreenWithTheNextAction) {
    Json status = {{"name", "anna"},
                   {"version", "0.1.0"},
                   {"started_at", "2026-01-01T00:00:00Z"},
                   {"health", {{"light", "red"}, {"reason", "device full"}, {"next", "add one"}}},
                   {"capacity_bytes", 100 * kGiB},
                   {"free_bytes", 25 * kGiB},
                   {"volume_count", 1},
                   {"attached_count", 1},
                   {"devices", Json::array()}};
    Json volumes = {{"volumes",
                     {{{"name", "data"},
                       {"size_bytes", 20 * kGiB},
                       {"used_bytes", kGiB},
                       {"copies", 1},
                       {"state", "attached"},
                       {"host", "anna"},
                       {"health", {{"light", "green"}}}}}}};
    std::string text = show_status(status, volumes, Style::plain);
    EXPECT_EQ(text.find("Trouble: device full\nNext: add one\n"), 0u) << text;
    EXPECT_NE(text.find("75%"), std::string::npos);
    EXPECT_NE(text.find("(this node)"), std::string::npos);
    EXPECT_NE(text.find("data    20 GiB"), std::string::npos) << text;
    EXPECT_NE(text.find("100%"), std::string::npos);
    EXPECT_EQ(text.find('\x1b'), std::string::npos);
}

TEST(Views, SurviveAnswersOfAnotherVersion) {
    for (const char* text : {"{}", "[]", "null", "{\"volumes\": 3}", "{\"volumes\": [1, {}]}",
                             "{\"devices\": [null], \"health\": \"x\", \"problems\": {}}"}) {
        Json json = Json::parse(text);
        show_status(json, json, Style::colours);
        show_volume(json, Style::plain);
        show_devices(json, Style::plain);
        show_scrub(json, Style::plain);
    }
}

}  // namespace
}  // namespace peplos::app
