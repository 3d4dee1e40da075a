-- On the site, the README of a folder is its index page, and pages outside nbs/ don't exist: their links become plain text
function Link(el)
  local path,anchor = el.target:match('^([^#]*)(#?.*)$')
  if path:match('^%a[%w+.-]*:') then return nil end
  if path:match('^[./]*README%.md$') and path:match('%.%./') or path:match('CONTRIBUTING%.md$') or path:match('CHANGELOG%.md$') then
    return el.content
  end
  el.target = path:gsub('README%.md$', 'index.qmd') .. anchor
  return el
end
