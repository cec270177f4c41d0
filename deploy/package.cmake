# Installs the programs and makes the Debian package: cpack -G DEB in the build folder.
# The three programs of the daemon lie in one folder: peplosd looks for the others beside itself.
set(PEPLOS_LIBEXEC libexec/peplos)
install(TARGETS peplosd peplos-holder peplos-mounter RUNTIME DESTINATION ${PEPLOS_LIBEXEC})
install(TARGETS peplos RUNTIME DESTINATION bin)
file(MAKE_DIRECTORY ${CMAKE_BINARY_DIR}/package)
file(CREATE_LINK ../${PEPLOS_LIBEXEC}/peplosd ${CMAKE_BINARY_DIR}/package/peplosd SYMBOLIC)
install(FILES ${CMAKE_BINARY_DIR}/package/peplosd DESTINATION sbin)
foreach(unit peplosd.service peplos-holder.service peplos-docker.socket)
  install(FILES ${CMAKE_SOURCE_DIR}/deploy/systemd/${unit} DESTINATION lib/systemd/system)
endforeach()

foreach(dropin run-peplos-mnt-.mount.d docker-.scope.d)
  install(DIRECTORY ${CMAKE_SOURCE_DIR}/deploy/systemd/${dropin} DESTINATION lib/systemd/system)
endforeach()

foreach(page peplos.1 peplosd.8 peplosd.toml.5)
  string(REGEX REPLACE "^.*\\." "" section ${page})
  set(source ${CMAKE_SOURCE_DIR}/deploy/man/${page})
  set(packed ${CMAKE_BINARY_DIR}/package/${page}.gz)
  add_custom_command(OUTPUT ${packed} COMMAND gzip -9nc ${source} > ${packed}
    DEPENDS ${source} VERBATIM)
  list(APPEND pages ${packed})
  install(FILES ${packed} DESTINATION share/man/man${section})
endforeach()
foreach(shell bash zsh fish)
  add_custom_command(OUTPUT ${CMAKE_BINARY_DIR}/package/completion.${shell}
    COMMAND peplos completion ${shell} > ${CMAKE_BINARY_DIR}/package/completion.${shell}
    DEPENDS peplos VERBATIM)
  list(APPEND completions ${CMAKE_BINARY_DIR}/package/completion.${shell})
endforeach()
install(FILES ${CMAKE_BINARY_DIR}/package/completion.bash
  DESTINATION share/bash-completion/completions RENAME peplos)
install(FILES ${CMAKE_BINARY_DIR}/package/completion.zsh
  DESTINATION share/zsh/vendor-completions RENAME _peplos)
install(FILES ${CMAKE_BINARY_DIR}/package/completion.fish
  DESTINATION share/fish/vendor_completions.d RENAME peplos.fish)
add_custom_target(peplos_package_files ALL DEPENDS ${pages} ${completions})

set(CPACK_GENERATOR DEB)
set(CPACK_PACKAGE_NAME peplos)
set(CPACK_PACKAGE_VENDOR Peplos)
set(CPACK_PACKAGE_CONTACT "Peplos maintainers <maintainers@peplos.invalid>")
set(CPACK_PACKAGE_DESCRIPTION_SUMMARY "distributed block storage for containers")
set(CPACK_PACKAGING_INSTALL_PREFIX /usr)
set(CPACK_STRIP_FILES ON)
set(CPACK_DEBIAN_FILE_NAME DEB-DEFAULT)
set(CPACK_DEBIAN_PACKAGE_SECTION admin)
set(CPACK_DEBIAN_PACKAGE_SHLIBDEPS ON)
set(CPACK_DEBIAN_PACKAGE_DEPENDS "e2fsprogs, xfsprogs, util-linux")
set(CPACK_DEBIAN_PACKAGE_SUGGESTS "docker.io")
set(CPACK_DEBIAN_PACKAGE_CONTROL_EXTRA
  "${CMAKE_SOURCE_DIR}/deploy/debian/postinst;${CMAKE_SOURCE_DIR}/deploy/debian/prerm")
include(CPack)
