#include "app/views.h"

#include <fmt/format.h>

#include "fabric/node.h"

namespace peplos::app {
namespace {

const Json kNothing;

Colour colour_of(std::string_view light) {
    if (light == "green") return Colour::green;
    if (light == "yellow") return Colour::yellow;
    return Colour::red;
}

std::string size_in(const Json& object, const char* name) {
    if (!object.is_object() || !object.contains(name)) return "-";
    return fabric::print_size(number_in(object, name));
}

// "healthy", or the reason in its colour.
std::string health_word(const Json& object, Style style) {
    const Json& health = child_in(object, "health");
    std::string light = text_in(health, "light", "red");
    if (light == "green") return paint("ok", Colour::green, style);
    return paint(text_in(health, "reason", "unknown"), colour_of(light), style);
}

std::string percent_local(const Json& volume) {
    // One node: whatever is stored is stored here.
    if (!volume.contains("local_percent")) return "100%";
    return fmt::format("{}%", number_in(volume, "local_percent"));
}

std::string volume_count_text(uint64_t count) {
    return fmt::format("{} volume{}", count, count == 1 ? "" : "s");
}

std::string health_lines(const Json& status, Style style) {
    const Json& health = child_in(status, "health");
    std::string light = text_in(health, "light", "red");
    if (light == "green") {
        return paint("Healthy", Colour::green, style) + ": all devices and volumes serve.\n";
    }
    std::string word = light == "yellow" ? "Attention" : "Trouble";
    std::string out = fmt::format("{}: {}\n", paint(word, colour_of(light), style),
                                  text_in(health, "reason", "no reason was given"));
    std::string next = text_in(health, "next", "");
    if (!next.empty()) out += fmt::format("Next: {}\n", paint(next, Colour::bold, style));
    return out;
}

}  // namespace

std::string text_in(const Json& object, const char* name, std::string otherwise) {
    if (!object.is_object()) return otherwise;
    auto found = object.find(name);
    if (found == object.end() || found->is_null()) return otherwise;
    if (found->is_string()) return printable(found->get<std::string>());
    return printable(found->dump(-1, ' ', false, Json::error_handler_t::replace));
}

uint64_t number_in(const Json& object, const char* name) {
    if (!object.is_object()) return 0;
    auto found = object.find(name);
    if (found == object.end() || !found->is_number()) return 0;
    if (found->is_number_unsigned()) return found->get<uint64_t>();
    double value = found->get<double>();
    return value > 0 ? static_cast<uint64_t>(value) : 0;
}

bool flag_in(const Json& object, const char* name) {
    if (!object.is_object()) return false;
    auto found = object.find(name);
    return found != object.end() && found->is_boolean() && found->get<bool>();
}

const Json& child_in(const Json& object, const char* name) {
    if (!object.is_object()) return kNothing;
    auto found = object.find(name);
    return found == object.end() ? kNothing : *found;
}

const Json& list_in(const Json& answer, const char* name) {
    static const Json kEmpty = Json::array();
    if (answer.is_array()) return answer;
    const Json& list = child_in(answer, name);
    return list.is_array() ? list : kEmpty;
}

std::string show_status(const Json& status, const Json& volumes, Style style) {
    std::string out = health_lines(status, style);
    uint64_t capacity = number_in(status, "capacity_bytes");
    uint64_t free_bytes = std::min(number_in(status, "free_bytes"), capacity);
    out += fmt::format("\nCapacity  {}  {} used, {} free of {}\n",
                       bar(capacity - free_bytes, capacity, 30, style),
                       fabric::print_size(capacity - free_bytes), fabric::print_size(free_bytes),
                       fabric::print_size(capacity));
    out += fmt::format("Node      {} (this node), peplosd {}, up since {}, {}, {} attached\n",
                       paint(text_in(status, "name"), Colour::bold, style),
                       text_in(status, "version"), text_in(status, "started_at"),
                       volume_count_text(number_in(status, "volume_count")),
                       number_in(status, "attached_count"));
    const Json& devices = list_in(status, "devices");
    out += "\n";
    out += devices.empty() ? "No device yet. Next: peplos device add PATH --size 20GiB\n"
                           : show_devices(devices, style);
    out += "\n" + show_volumes(volumes, style);
    return out;
}

std::string show_volumes(const Json& answer, Style style) {
    const Json& volumes = list_in(answer, "volumes");
    if (volumes.empty()) {
        return "No volume yet. Next: docker volume create -d peplos -o size=10GiB data\n";
    }
    Table table({"VOLUME", ">SIZE", ">USED", "FS", "STATE", "HOST", ">LOCAL", ">COPIES", "HEALTH"});
    for (const Json& volume : volumes) {
        table.add({text_in(volume, "name"), size_in(volume, "size_bytes"),
                   size_in(volume, "used_bytes"), text_in(volume, "fs"), text_in(volume, "state"),
                   text_in(volume, "host"), percent_local(volume), text_in(volume, "copies", "1"),
                   health_word(volume, style)});
    }
    return table.text(style);
}

std::string show_devices(const Json& answer, Style style) {
    const Json& devices = list_in(answer, "devices");
    if (devices.empty()) return "No device yet. Next: peplos device add PATH --size 20GiB\n";
    Table table({"DEVICE", "CLASS", ">SIZE", ">FREE", "USED", ">JOURNAL", ">ERRORS", "HEALTH"});
    for (const Json& device : devices) {
        uint64_t total = number_in(device, "segment_bytes_total");
        uint64_t free_bytes = std::min(number_in(device, "segment_bytes_free"), total);
        uint64_t ring = number_in(device, "ring_bytes");
        uint64_t ring_used = number_in(device, "ring_bytes_used");
        uint64_t ring_percent = ring == 0 ? 0 : ring_used * 100 / ring;
        table.add({text_in(device, "path"), text_in(device, "media_class"),
                   size_in(device, "bytes"), fabric::print_size(free_bytes),
                   bar(total - free_bytes, total, 10, style), fmt::format("{}%", ring_percent),
                   fmt::format("{}", number_in(device, "read_errors") +
                                         number_in(device, "write_errors") +
                                         number_in(device, "corruptions")),
                   health_word(device, style)});
    }
    return table.text(style);
}

std::string show_volume(const Json& volume, Style style) {
    std::string out;
    auto line = [&](std::string_view name, const std::string& value) {
        if (!value.empty()) out += fmt::format("{:<12}{}\n", name, value);
    };
    line("Volume", paint(text_in(volume, "name"), Colour::bold, style));
    line("Id", text_in(volume, "id"));
    line("Health", health_word(volume, style));
    line("Next", text_in(child_in(volume, "health"), "next", ""));
    line("State", text_in(volume, "state"));
    line("Size", size_in(volume, "size_bytes"));
    line("Used", fmt::format("{} (stored: {})", size_in(volume, "used_bytes"),
                             size_in(volume, "stored_bytes")));
    line("Host", fmt::format("{}, {} local", text_in(volume, "host"), percent_local(volume)));
    line("Copies", text_in(volume, "copies", "1"));
    line("File system", text_in(volume, "fs"));
    line("Sector", text_in(volume, "sector_bytes"));
    line("Created", text_in(volume, "created_at"));
    if (std::string when = text_in(volume, "recovered_at", ""); !when.empty()) {
        line("Recovered", fmt::format("{}, with loss: {}", when,
                                      printable(text_in(volume, "recovered_without", "-"))));
    }
    const Json& labels = child_in(volume, "labels");
    if (labels.is_object()) {
        for (const auto& [key, value] : labels.items()) {
            line("Label", printable(key) + "=" + text_in(labels, key.c_str()));
        }
    }
    for (const Json& holder : list_in(child_in(volume, "holders"), "")) {
        if (holder.is_string()) line("Mounted by", printable(holder.get<std::string>()));
    }
    const Json& attach = child_in(volume, "attach");
    if (attach.is_object()) {
        line("Attached",
             fmt::format("{} on {}", text_in(attach, "way"), text_in(attach, "device")));
        line("Why", text_in(attach, "why", ""));
        line("Path", text_in(attach, "path", ""));
        line("In use", fmt::format("{} of {} in the file system", size_in(attach, "fs_used_bytes"),
                                   size_in(attach, "fs_bytes")));
        if (flag_in(attach, "grows_at_mount")) {
            line("Grows",
                 "at the next mount: its file system is smaller than the volume, and "
                 "follows when its containers were stopped and started");
        }
        line("Problem", text_in(attach, "problem", ""));
    }
    return out;
}

std::string show_recovery(const Json& report) {
    std::string out;
    auto list = [&](std::string_view title, const Json& lines) {
        if (lines.empty()) return;
        out += fmt::format("{}\n", title);
        for (const Json& line : lines) {
            if (line.is_string()) out += fmt::format("  {}\n", printable(line.get<std::string>()));
        }
    };
    const bool is_done = flag_in(report, "is_done");
    list("What cannot be read:", list_in(report, "findings"));
    list(is_done ? "What is lost:" : "What would be lost:", list_in(report, "losses"));
    if (!list_in(report, "findings").empty() && list_in(report, "losses").empty())
        out += "Nothing else is lost: what it said is known from elsewhere.\n";
    if (uint64_t bytes = number_in(report, "lost_bytes"); bytes != 0) {
        out += fmt::format("Reads as errors until it is written again: {}\n",
                           fabric::print_size(bytes));
    }
    return out + text_in(report, "message") + "\n";
}

std::string show_scrub(const Json& report, Style style) {
    uint64_t total = number_in(report, "segments_total");
    uint64_t done = number_in(report, "segments_done");
    std::string out;
    if (flag_in(report, "running")) {
        out += fmt::format("Scrub runs: {} of {} segments, {} checked\n{}\n", done, total,
                           size_in(report, "bytes_checked"), bar(done, total, 40, style));
    } else if (text_in(report, "finished_at", "").empty()) {
        out += "No scrub has run since the daemon started. Next: peplos scrub start\n";
    } else {
        out += fmt::format("Last scrub ended {}: {} segments, {} checked\n",
                           text_in(report, "finished_at"), done, size_in(report, "bytes_checked"));
    }
    const Json& problems = list_in(report, "problems");
    if (problems.empty()) {
        if (done != 0) out += paint("No problem found.", Colour::green, style) + "\n";
        return out;
    }
    out += paint(fmt::format("{} problems:", problems.size()), Colour::red, style) + "\n";
    for (const Json& problem : problems) {
        if (problem.is_string()) out += "  " + printable(problem.get<std::string>()) + "\n";
    }
    return out;
}

}  // namespace peplos::app
