"""A rule for a model folder that a tool writes."""

def _model_folder_impl(ctx):
    folder = ctx.actions.declare_directory(ctx.label.name)
    ctx.actions.run(
        executable = ctx.executable.tool,
        arguments = [folder.path],
        outputs = [folder],
        mnemonic = "ConvertModel",
        progress_message = "Converting a model to %s" % ctx.label,
        use_default_shell_env = True,
    )
    return [DefaultInfo(files = depset([folder]), runfiles = ctx.runfiles([folder]))]

model_folder = rule(
    implementation = _model_folder_impl,
    doc = "Runs `tool FOLDER`; the folder it fills, named like the target, is the output.",
    attrs = {
        "tool": attr.label(mandatory = True, executable = True, cfg = "exec"),
    },
)
