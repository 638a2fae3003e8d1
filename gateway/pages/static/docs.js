"use strict";
window.SwaggerUIBundle({
  url: "/openapi.json",
  dom_id: "#reference",
  deepLinking: true,
  displayRequestDuration: true,
  persistAuthorization: false, // a key does not belong in a browser's storage
  // The document names the public address; a page opened by another name of this server keeps to its own.
  requestInterceptor: (request) => {
    const url = new URL(request.url, location.href);
    request.url = location.origin + url.pathname + url.search;
    return request;
  },
  validatorUrl: null, // works offline, and sends nothing to others
});
