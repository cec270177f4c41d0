#pragma once
// As pch.h, and the headers that nearly every test needs.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "runtime/asio_impl/pch.h"
