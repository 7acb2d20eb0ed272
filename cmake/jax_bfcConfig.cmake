# find_package(jax_bfc) gives the target jax_bfc::headers. Nothing is linked but
# dlsym: the library is found in the process at run time.
if(NOT TARGET jax_bfc::headers)
  add_library(jax_bfc::headers INTERFACE IMPORTED)
  get_filename_component(_jax_bfc_include "${CMAKE_CURRENT_LIST_DIR}/../include"
                         ABSOLUTE)
  set_target_properties(
    jax_bfc::headers
    PROPERTIES INTERFACE_INCLUDE_DIRECTORIES "${_jax_bfc_include}"
               INTERFACE_COMPILE_FEATURES cxx_std_17
               INTERFACE_LINK_LIBRARIES "${CMAKE_DL_LIBS}")
  unset(_jax_bfc_include)
endif()
